"""A bundle: a directory `NAME.masksam/` that holds `manifest.json` and the files it lists, nothing else.

Loading trusts no byte of it: the manifest is checked against its schema and itself (`manifest_rules.py`),
and every file against its size and SHA-256. One single number, the SHA-256 of `manifest.json`, therefore
names the whole content. The packed form is in `archive.py`.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from masksam_deploy.base import temporaries
from masksam_deploy.base.errors import BundleError, OutputError
from masksam_deploy.base.paths import check_name, kind_of, open_regular
from masksam_deploy.base.temporaries import Temporary, clean, settle
from masksam_deploy.base.text import NOT_UTF8, is_utf8
from masksam_deploy.bundle.graph_check import check_graph
from masksam_deploy.bundle.manifest import SCHEMA_VERSION, FileDigest, Manifest
from masksam_deploy.bundle.rules import (
    ENGINES_DIRECTORY,
    IMAGE_PORT,
    KERNELS_DIRECTORY,
    MANIFEST_LIMIT,
    MANIFEST_NAME,
    check_manifest,
    parse_manifest,
    shown,
)

_CHUNK = 2**20
_COPY_AGAIN = "copy or export the bundle again"


@dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest and files were found consistent.

    Attributes:
        path: the directory.
        manifest: its parsed `manifest.json`.
        sha256: of `manifest.json`; with the hashes in there it stands for every byte of the bundle.
        verified: whether the files' hashes were checked; only then may the bundle be used for inference.
    """

    path: Path
    manifest: Manifest
    sha256: str
    verified: bool

    @classmethod
    def load(cls, path: str | Path, *, verify: bool = True) -> Bundle:
        """Read a bundle directory and check all of it.

        Args:
            path: the directory (a packed bundle must be unpacked first); it may be reached through a link, but
                nothing inside it may be one.
            verify: whether to hash the files. Without it, only their presence, kind and size are checked, and
                the bundle must not be used for inference.

        Raises:
            BundleError: the bundle is missing, damaged, unsafe, inconsistent or of an unknown version.
        """
        directory = Path(path)
        try:
            _check_directory(directory)
            data = read_manifest_bytes(directory)
            manifest = parse_manifest(data, str(path))
            _check_listing(directory, manifest)
            for name, expected in sorted(manifest.files.items()):
                _check_file(directory, name, expected, hashed=verify)
        except OSError as exc:
            raise BundleError(
                f"{path}: found a bundle that cannot be read ({exc.strerror}: {shown(exc.filename)}), "
                "expected readable files; check the permissions and the disk"
            ) from exc
        return cls(directory, manifest, hashlib.sha256(data).hexdigest(), verified=verify)

    def graph_path(self, name: str) -> Path:
        """Where the ONNX file of the graph `name` lies, for a runtime to open: see `check_graph`.

        Raises:
            BundleError: there is no such graph, or it is one that no runtime must be given.
        """
        for graph in self.manifest.graphs:
            if graph.name == name:
                path = self.path / graph.file
                check_graph(path)
                return path
        raise BundleError(
            f"{self.path}: found graphs {shown([graph.name for graph in self.manifest.graphs])}, expected "
            f"one named {shown(name)}; export the bundle again"
        )

    @property
    def kernels(self) -> Path | None:
        """Where the pack of GPU kernels lies, if the bundle carries one."""
        listed = any(name.startswith(f"{KERNELS_DIRECTORY}/") for name in self.manifest.files)
        return self.path / KERNELS_DIRECTORY if listed else None

    @property
    def patch_size(self) -> tuple[int, int, int]:
        """Voxels of one network input along the transposed axes, `(T, H, W)`."""
        _, depth, height, width = self._image_dims
        return (depth, height, width)

    @property
    def channels(self) -> int:
        """Number of input channels, C."""
        return self._image_dims[0]

    @property
    def classes(self) -> int:
        """Number of score channels, K, the background's among them."""
        return len(self.manifest.labels.classes)

    @property
    def _image_dims(self) -> tuple[int, ...]:
        image = next(port for port in self.manifest.graphs[0].inputs if port.name == IMAGE_PORT)
        return tuple(int(dim) for dim in image.shape[1:])


def write_bundle(staging: Path, manifest: Manifest, target: Path, *, force: bool = False) -> Bundle:
    """Turn a staging directory that holds a bundle's files into the bundle `target`, in one rename.

    Args:
        staging: the directory from `staging_directory(target)`, with the graphs in place.
        manifest: all but the hashes; its `files` is replaced by what lies in `staging`.
        target: the bundle's directory.
        force: whether to replace a bundle that is already there.

    Returns:
        The bundle at `target`. After any error `target` is as it was before.

    Raises:
        BundleError: the manifest contradicts itself or the files.
        OutputError: the target exists, or the disk refuses.
    """
    with reporting_writes(target):
        names = [name for name in _regular_files(staging) if name != MANIFEST_NAME]
        files = {name: file_digest(staging / name) for name in sorted(names)}
        complete = manifest.model_copy(update={"files": files, "schema_version": SCHEMA_VERSION})
        check_manifest(complete, str(target))
        (staging / MANIFEST_NAME).write_text(complete.model_dump_json(indent=2) + "\n", encoding="utf-8")
    # Reading it back shows that what was written is what a reader will accept.
    with speaking_of(staging, target):
        bundle = Bundle.load(staging, verify=False)
    if bundle.manifest != complete:
        raise BundleError(
            f"{target}: {MANIFEST_NAME}: found values that JSON cannot hold (such as NaN), expected plain "
            "ones; correct what is exported"
        )
    move_into_place(staging, target, force=force)
    return replace(bundle, path=target, verified=True)  # hashed a moment ago


@contextmanager
def staging_directory(target: Path) -> Iterator[Path]:
    """An empty directory beside `target`, gone afterwards unless it was renamed into place.

    What killed processes left beside `target` is removed, and what they had set aside comes back if there is still no
    `target` afterwards; see `temporaries.py`. Errors that name the directory name `target` instead.

    Raises:
        OutputError: it cannot be created.
    """
    staging = _sibling(target, "staging")
    try:
        with reporting_writes(target):
            clean(staging.path.parent)
            # Not tempfile.mkdtemp: its private mode would stay with the finished bundle.
            staging.create_folder()
        with temporaries.speaking_of(staging.path, target):
            yield staging.path
    finally:
        staging.remove()
        # Not before: a bundle that came back then would refuse the new one, after all its work, without `force`.
        settle(Path(os.path.abspath(target)))  # noqa: PTH100 - as in `_sibling`


def check_target(target: Path, *, force: bool) -> None:
    """Refuse a bundle directory that must not be written, before the work for it is done.

    Raises:
        OutputError: it exists and `force` is not given, or what exists is no bundle.
    """
    settle(Path(os.path.abspath(target)))  # noqa: PTH100  what a killed run set aside counts as there
    if not os.path.lexists(target):
        return
    if not force:
        raise OutputError(f"{target} already exists; use --force or -o")
    if not _holds_only_a_bundle(target):
        raise OutputError(
            f"{target}: found something that is not a bundle, or more than one, expected a bundle to replace; "
            "choose another name or remove it yourself"
        )


def _holds_only_a_bundle(target: Path) -> bool:
    """Whether nothing but an empty directory or a bundle, even a damaged one, is lost when `target` is replaced."""
    if target.is_symlink() or not target.is_dir():
        return False
    if not any(target.iterdir()):
        return True
    try:
        listed = parse_manifest(read_manifest_bytes(target), str(target)).files
        return all(name == MANIFEST_NAME or name in listed for name in _regular_files(target))
    except BundleError:
        return False


def move_into_place(staging: Path, target: Path, *, force: bool) -> None:
    """Rename a finished directory to `target`; with `force`, an old bundle there makes way.

    Raises:
        OutputError: as `check_target`, or a rename failed; then `target` is as before.
    """
    check_target(target, force=force)
    aside = _sibling(target, "replaced")
    with reporting_writes(target):
        try:
            if force:
                with suppress(FileNotFoundError):
                    aside.take_over(target)
            staging.rename(target)
        finally:
            # Asked of the disk, not of a flag: an interrupt can come between a rename and its bookkeeping.
            if not os.path.lexists(staging):
                aside.remove()
            elif os.path.lexists(aside.path) and not os.path.lexists(target):
                aside.path.rename(target)
            aside.release()


@contextmanager
def speaking_of(directory: Path, name: Path) -> Iterator[None]:
    """Let messages about a temporary directory name what the user knows."""
    try:
        yield
    except BundleError as exc:
        raise BundleError(str(exc).replace(str(directory), str(name))) from exc


@contextmanager
def reporting_writes(target: Path) -> Iterator[None]:
    """Turn an operating-system error while writing `target` into an `OutputError`."""
    try:
        yield
    except OSError as exc:
        raise OutputError(
            f"{target}: cannot be written ({exc.strerror or exc}), expected a writable place with enough "
            "room; check the folder, its permissions and the disk"
        ) from exc


def read_manifest_bytes(directory: Path) -> bytes:
    """The raw `manifest.json` of a bundle directory.

    Raises:
        BundleError: it is missing, no regular file, or larger than `MANIFEST_LIMIT`.
    """
    path = directory / MANIFEST_NAME
    if not os.path.lexists(path):
        raise BundleError(f"{directory}: found no {MANIFEST_NAME}, expected a bundle; name a bundle's directory")
    _check_regular(directory, MANIFEST_NAME)
    with open_regular(path) as file:
        data = file.read(MANIFEST_LIMIT + 1)
    if len(data) > MANIFEST_LIMIT:
        raise BundleError(
            f"{directory}: {MANIFEST_NAME}: found more than {MANIFEST_LIMIT} bytes, expected a few thousand; "
            f"{_COPY_AGAIN}"
        )
    return data


def file_digest(path: Path) -> FileDigest:
    """Size and SHA-256 of a regular file, read in bounded pieces.

    Raises:
        OSError: it cannot be read, or is something else: reading a device would not end.
    """
    digest, size = hashlib.sha256(), 0
    with open_regular(path) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return FileDigest(sha256=digest.hexdigest(), bytes=size)


def _check_directory(directory: Path) -> None:
    check_name(directory, BundleError)
    if not is_utf8(directory):
        raise BundleError(f"{shown(str(directory))}: {NOT_UTF8}")
    if directory.is_dir():
        return
    if not os.path.lexists(directory):
        raise BundleError(f"{directory}: found nothing there, expected a bundle directory; check the path")
    todo = "name a bundle's directory"
    if directory.is_file():
        with open_regular(directory) as file:
            if file.read(4) == b"PK\x03\x04":
                todo = f"unpack it first: masksam-deploy unpack {shlex.quote(str(directory))}"
    try:
        kind = kind_of(directory.stat().st_mode)
    except OSError:
        kind = "a symbolic link that leads nowhere"
    raise BundleError(f"{directory}: found {kind}, expected a bundle directory; {todo}")


def _check_listing(directory: Path, manifest: Manifest) -> None:
    present = set(_regular_files(directory)) - {MANIFEST_NAME}
    if missing := sorted(set(manifest.files) - present):
        raise BundleError(
            f"{directory}: {shown(missing[0])}: found no such file, expected one of "
            f"{manifest.files[missing[0]].bytes} bytes; {_COPY_AGAIN}"
        )
    if unlisted := sorted(present - set(manifest.files)):
        raise BundleError(
            f"{directory}: {shown(unlisted[0])}: found a file that {MANIFEST_NAME} does not list, expected "
            "only listed files; remove it, or copy the bundle again"
        )


def _check_file(directory: Path, name: str, expected: FileDigest, *, hashed: bool) -> None:
    size = (directory / name).stat().st_size
    if size != expected.bytes:
        raise BundleError(
            f"{directory}: {shown(name)}: found {size} bytes, expected {expected.bytes}; the file is damaged "
            f"or incomplete: {_COPY_AGAIN}"
        )
    if hashed and (found := file_digest(directory / name)) != expected:
        raise BundleError(
            f"{directory}: {shown(name)}: found SHA-256 {found.sha256}, expected {expected.sha256}; the file "
            f"was changed after export: {_COPY_AGAIN}"
        )


def _regular_files(directory: Path) -> Iterator[str]:
    """Names of all files below a bundle's directory, `engines/` left out.

    Raises:
        BundleError: a symlink, or something that is neither a file nor a folder.
    """
    folders = [""]
    while folders:
        folder = folders.pop()
        with os.scandir(directory / folder) as entries:
            for entry in entries:
                name = f"{folder}{entry.name}"
                if not entry.is_dir(follow_symlinks=False):
                    _check_regular(directory, name)
                    yield name
                elif name != ENGINES_DIRECTORY:
                    folders.append(f"{name}/")


def _check_regular(directory: Path, name: str) -> None:
    mode = (directory / name).lstat().st_mode
    if not stat.S_ISREG(mode):
        kind = "a symbolic link" if stat.S_ISLNK(mode) else "something that is no file"
        raise BundleError(
            f"{directory}: {shown(name)}: found {kind}, expected a regular file; copy the bundle again with "
            "links resolved"
        )


def _sibling(target: Path, purpose: str) -> Temporary:
    """A new hidden name beside `target`, on the same file system so that a rename suffices."""
    absolute = Path(os.path.abspath(target))  # noqa: PTH100 - resolve() would follow a link at the target
    return Temporary(absolute.parent, f".{absolute.name}.{purpose}-")
