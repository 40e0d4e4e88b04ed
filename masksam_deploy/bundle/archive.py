"""The packed form of a bundle: one uncompressed zip, the same bytes for the same bundle, manifest first.

Unpacking treats the archive as hostile: only what its manifest declares is written, in declared sizes, into a
staging directory that becomes the bundle after all of it was verified.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import FileIO
from pathlib import Path

from masksam_deploy.base.atomic import atomic_path
from masksam_deploy.base.errors import BundleError, OutputError
from masksam_deploy.base.paths import check_name, only_regular, open_regular, resolved
from masksam_deploy.bundle.directory import (
    Bundle,
    check_target,
    move_into_place,
    read_manifest_bytes,
    reporting_writes,
    speaking_of,
    staging_directory,
)
from masksam_deploy.bundle.manifest import FileDigest, Manifest
from masksam_deploy.bundle.rules import MANIFEST_LIMIT, MANIFEST_NAME, is_plain_name, parse_manifest, shown

_CHUNK = 2**20
_LONGEST_READ = 2**20
"""Bytes. zipfile reads the archive's whole directory at once; this bounds what a hostile one can make it "
"read."""
_EPOCH = (1980, 1, 1, 0, 0, 0)
_ENCRYPTED = 0x0001 | 0x0040 | 0x2000
"""Zip flag bits: encrypted, strongly encrypted, encrypted directory."""
_PACK_AGAIN = "get the packed bundle again, or pack it with masksam-deploy pack"


def pack(bundle_dir: str | Path, target_file: str | Path, *, force: bool = False) -> Path:
    """Write a verified bundle into one file; `engines/` stays behind, it belongs to its machine.

    Args:
        bundle_dir: the bundle's directory.
        target_file: the file to write, `NAME.masksam.zip` by convention, outside the bundle.
        force: whether to replace a file that is already there.

    Returns:
        `target_file`, complete; after any error nothing was written.

    Raises:
        BundleError: the bundle does not pass the checks of `Bundle.load`.
        OutputError: the file exists, or cannot be written.
    """
    directory, target = Path(bundle_dir), Path(target_file)
    check_name(target, OutputError)
    # Contents are hashed below, while they are copied: what is packed is what was verified.
    bundle = Bundle.load(directory, verify=False)
    manifest_data = read_manifest_bytes(directory)
    if hashlib.sha256(manifest_data).hexdigest() != bundle.sha256:
        raise BundleError(f"{directory}: found files changing while packing, expected none to; pack it again")
    if resolved(directory, BundleError) in resolved(target, OutputError).parents:
        raise OutputError(f"{target}: found a target inside the bundle, expected one outside; choose another folder")
    if os.path.lexists(target) and not force:
        raise OutputError(f"{target} already exists; use --force or -o")
    with atomic_path(target) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(_entry(MANIFEST_NAME, len(manifest_data)), manifest_data)
        for name, expected in sorted(bundle.manifest.files.items()):
            _add_file(archive, directory, name, expected)
    return target


def unpack(file: str | Path, target_dir: str | Path, *, force: bool = False) -> Bundle:
    """Restore a bundle directory from its packed form and verify all of it.

    Args:
        file: what `pack` wrote; it may come from anywhere.
        target_dir: the directory to create, `NAME.masksam` by convention.
        force: whether to replace a bundle that is already there.

    Returns:
        The verified bundle at `target_dir`; after any error the disk is as it was before.

    Raises:
        BundleError: the archive is damaged, unsafe, or does not hold a consistent bundle.
        OutputError: the target exists, cannot be written, or the disk has too little room.
    """
    source, target = Path(file), Path(target_dir)
    check_name(source, BundleError)
    check_name(target, OutputError)
    check_target(target, force=force)
    with _opened(source) as archive:
        infos = archive.infolist()
        _check_entries(infos, source)
        data = b"".join(_chunks(archive, infos[0], source))
        manifest = parse_manifest(data, str(source))
        _check_against_manifest(infos, manifest, source)
        _check_room(sum(info.file_size for info in infos), source, target)
        with staging_directory(target) as staging:
            for info in infos:
                _extract(archive, info, source, staging, target)
            with speaking_of(staging, source):
                bundle = Bundle.load(staging)
            move_into_place(staging, target, force=force)
    return replace(bundle, path=target)


def _entry(name: str, size: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, _EPOCH)
    # Fixed, so that the same bundle packs to the same bytes on every system and for every user.
    info.create_system = 3
    info.external_attr = (stat.S_IFREG | 0o644) << 16
    info.file_size = size
    return info


def _add_file(archive: zipfile.ZipFile, directory: Path, name: str, expected: FileDigest) -> None:
    try:
        source = open_regular(directory / name)
    except OSError as exc:
        raise BundleError(
            f"{directory}: {shown(name)}: found a file that cannot be read ({exc.strerror}), expected a "
            "readable one; check its permissions"
        ) from exc
    digest, size = hashlib.sha256(), 0
    with source, archive.open(_entry(name, expected.bytes), "w") as member:
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
            member.write(chunk)
    if FileDigest(sha256=digest.hexdigest(), bytes=size) != expected:
        raise BundleError(
            f"{directory}: {shown(name)}: found {size} bytes with SHA-256 {digest.hexdigest()}, expected "
            f"{expected.bytes} with {expected.sha256}; the file was changed after export: copy or export the "
            "bundle again"
        )


class _BoundedReads(FileIO):
    """A file that refuses to be read in larger pieces than an honest archive needs."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _LONGEST_READ:
            raise zipfile.BadZipFile(f"its directory takes {size} bytes")
        return super().read(size) or b""


@contextmanager
def _opened(source: Path) -> Iterator[zipfile.ZipFile]:
    with _reporting_reads(source):
        if source.is_dir():
            raise BundleError(f"{source}: found a directory, expected a packed bundle; it needs no unpacking")
        file = _BoundedReads(source, opener=only_regular)
    with file:
        with _reporting_reads(source):
            archive = zipfile.ZipFile(file)
        with archive:
            yield archive


@contextmanager
def _reporting_reads(source: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as exc:
        raise BundleError(f"{source}: found nothing there, expected a packed bundle; check the path") from exc
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        OverflowError,
        struct.error,
    ) as exc:
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        raise BundleError(
            f"{source}: found an archive that cannot be read ({shown(reason)}), expected a packed bundle; {_PACK_AGAIN}"
        ) from exc


def _chunks(archive: zipfile.ZipFile, info: zipfile.ZipInfo, source: Path) -> Iterator[bytes]:
    with _reporting_reads(source), archive.open(info) as member:
        while chunk := member.read(_CHUNK):
            yield chunk


def _check_entries(infos: list[zipfile.ZipInfo], source: Path) -> None:
    if not infos or infos[0].filename != MANIFEST_NAME:
        first = shown(infos[0].filename) if infos else "nothing"
        raise BundleError(f"{source}: found {first} as first entry, expected {MANIFEST_NAME}; {_PACK_AGAIN}")
    seen: set[str] = set()
    for info in infos:
        problem = "found twice, expected once" if info.filename in seen else _entry_problem(info)
        if problem:
            raise BundleError(f"{source}: entry {shown(info.orig_filename)}: {problem}; {_PACK_AGAIN}")
        seen.add(info.filename)
    if infos[0].file_size > MANIFEST_LIMIT:
        raise BundleError(
            f"{source}: {MANIFEST_NAME}: found {infos[0].file_size} bytes, expected at most "
            f"{MANIFEST_LIMIT}; {_PACK_AGAIN}"
        )


def _entry_problem(info: zipfile.ZipInfo) -> str:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if info.orig_filename != info.filename or not is_plain_name(info.filename):
        return "found an unsafe name, expected a plain relative one"
    if kind not in (0, stat.S_IFREG):
        return f"found {'a symbolic link' if kind == stat.S_IFLNK else 'something that is no file'}, expected a file"
    if info.flag_bits & _ENCRYPTED:
        return "found an encrypted file, expected a plain one"
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        return "found a compressed file, expected a stored one"
    return ""


def _check_against_manifest(infos: list[zipfile.ZipInfo], manifest: Manifest, source: Path) -> None:
    sizes = {info.filename: info.file_size for info in infos if info.filename != MANIFEST_NAME}
    for name, size in sizes.items():
        if name not in manifest.files:
            raise BundleError(
                f"{source}: entry {shown(name)}: found a file that {MANIFEST_NAME} does not list, expected "
                f"only listed files; {_PACK_AGAIN}"
            )
        if size != manifest.files[name].bytes:
            raise BundleError(
                f"{source}: entry {shown(name)}: found {size} bytes, expected {manifest.files[name].bytes}; "
                f"{_PACK_AGAIN}"
            )
    if missing := sorted(set(manifest.files) - set(sizes)):
        raise BundleError(f"{source}: found no entry {shown(missing[0])}, expected all listed files; {_PACK_AGAIN}")


def _check_room(needed: int, source: Path, target: Path) -> None:
    held = source.stat().st_size
    if needed > held:
        raise BundleError(
            f"{source}: found an archive of {held} bytes that claims to hold {needed}, expected no more than "
            f"it takes; {_PACK_AGAIN}"
        )
    with reporting_writes(target):
        free = shutil.disk_usage(target.absolute().parent).free
    if needed > free:
        raise OutputError(
            f"{target}: found {free} bytes free on the disk, expected {needed}; make room or choose another disk"
        )


def _extract(archive: zipfile.ZipFile, info: zipfile.ZipInfo, source: Path, staging: Path, target: Path) -> None:
    path = staging / info.filename
    with reporting_writes(target):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            for chunk in _chunks(archive, info, source):
                file.write(chunk)
