"""Label maps: geometry and values survive, and a file that is not whole never appears."""

from __future__ import annotations

import gzip
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st

from masksam_deploy.base.errors import OutputError
from masksam_deploy.base.volume import Geometry, Volume
from masksam_deploy.io import read_volume, write_labels
from masksam_deploy.io.write_labels import check_label_name

FORMATS = [".nii", ".nii.gz", ".nrrd", ".mha"]
PLAIN = Geometry((5, 4, 3), (0.7, 0.8, 2.5), (-12.5, 30.25, 400.125), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))


def labels(geometry: Geometry = PLAIN, *, high: int = 3, dtype: str = "u1") -> Volume:
    values = np.random.default_rng(0).integers(0, high, geometry.shape_zyx, endpoint=True).astype(dtype)
    values.flat[-1] = high
    return Volume(values, geometry)


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    """Rotations in all directions, mirrored or not, and axis permutations with signs."""
    real = st.floats(-1, 1)
    if draw(st.booleans()):
        order = draw(st.permutations(range(3)))
        axes = np.eye(3)[:, order] * draw(st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3))
    else:
        q = np.array(draw(st.tuples(st.floats(1, 3), real, real, real)))
        a, b, c, d = q / np.linalg.norm(q)
        axes = np.array(
            [
                [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
                [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
                [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
            ]
        ) * (1, 1, draw(st.sampled_from([-1.0, 1.0])))
    size = draw(st.tuples(*[st.integers(2, 9)] * 3))
    spacing = draw(st.tuples(*[st.floats(0.05, 20)] * 3))
    origin = draw(st.tuples(*[st.floats(-2000, 2000)] * 3))
    return Geometry(size, spacing, origin, tuple(float(v) for v in axes.ravel()))


@settings(max_examples=60, deadline=None)
@given(geometry=geometries(), suffix=st.sampled_from([".nii", ".nii.gz", ".nrrd", ".mha"]))
def test_any_rotated_or_mirrored_grid_survives_every_format(geometry: Geometry, suffix: str) -> None:
    volume = labels(geometry)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"seg{suffix}"
        write_labels(volume, path)
        back = read_volume(path)
    np.testing.assert_array_equal(back.array[0], volume.array)
    assert back.geometry.size_xyz == geometry.size_xyz
    # NIfTI stores float32; the text formats keep every digit that matters.
    np.testing.assert_allclose(back.geometry.spacing_xyz, geometry.spacing_xyz, rtol=1e-6)
    np.testing.assert_allclose(back.geometry.origin_lps, geometry.origin_lps, atol=2e-4)
    np.testing.assert_allclose(back.geometry.direction_lps, geometry.direction_lps, atol=2e-6)


def test_a_nifti_label_map_lies_where_nibabel_sees_the_scan(data: Path, tmp_path: Path) -> None:
    for i, name in enumerate(["nibabel_anatomical.nii", "PIL_axes_dicom2nifti_001.nii.gz"]):
        scan = read_volume(data / "nifti" / name)
        write_labels(Volume((scan.array[0] > 100).astype(np.uint8), scan.geometry), tmp_path / f"{i}.nii.gz")
        written, original = nibabel.load(tmp_path / f"{i}.nii.gz"), nibabel.load(data / "nifti" / name)
        np.testing.assert_allclose(written.affine, original.affine, atol=2e-4)
        np.testing.assert_array_equal(np.asarray(written.dataobj), np.asarray(original.dataobj) > 100)
        np.testing.assert_allclose(written.get_sform(), written.get_qform(), atol=2e-4)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    ("high", "dtype", "stored"),
    [(1, "i8", "uint8"), (255, "i4", "uint8"), (256, "u2", "uint16"), (65535, "i4", "uint16"), (1, "?", "uint8")],
)
def test_the_smallest_type_that_holds_the_labels_is_stored(
    tmp_path: Path, suffix: str, high: int, dtype: str, stored: str
) -> None:
    volume = labels(high=high, dtype=dtype)
    write_labels(volume, tmp_path / f"seg{suffix}")
    back = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / f"seg{suffix}")))
    assert back.dtype == stored
    np.testing.assert_array_equal(back, volume.array)


def test_only_nii_gz_is_compressed_and_a_suffix_may_be_in_capitals(tmp_path: Path) -> None:
    big = Volume(np.zeros((20, 20, 20), np.uint8), Geometry((20, 20, 20), *list(vars(PLAIN).values())[1:]))
    sizes = {}
    for suffix in FORMATS:
        write_labels(big, tmp_path / f"SEG{suffix.upper()}")
        sizes[suffix] = (tmp_path / f"SEG{suffix.upper()}").stat().st_size
    assert sizes[".nii.gz"] < 1000
    assert all(sizes[suffix] > 8000 for suffix in FORMATS if suffix != ".nii.gz")
    assert len(gzip.decompress((tmp_path / "SEG.NII.GZ").read_bytes())) == sizes[".nii"]


def test_a_view_with_strides_is_written_in_the_right_order(tmp_path: Path) -> None:
    values = np.arange(60, dtype=np.uint8).reshape(5, 4, 3).transpose(2, 1, 0)[::-1]
    write_labels(Volume(values, PLAIN), tmp_path / "seg.nrrd")
    np.testing.assert_array_equal(read_volume(tmp_path / "seg.nrrd").array[0], values)


@pytest.mark.parametrize("name", ["seg.mhd", "seg.nhdr", "seg.png", "seg", "seg.hdr", "seg.gz"])
def test_other_file_types_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match=r"\.mha"):
        write_labels(labels(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("array", "part"),
    [
        (np.zeros((3, 4, 5), np.float32), "type float32"),
        (np.full((3, 4, 5), -1, np.int16), "from -1"),
        (np.full((3, 4, 5), 65536, np.int32), "to 65536"),
        (np.zeros((1, 3, 4, 5), np.uint8), "4 axes"),
    ],
)
def test_arrays_that_are_no_label_map_are_refused(tmp_path: Path, array: np.ndarray, part: str) -> None:
    with pytest.raises(OutputError, match=part):
        write_labels(Volume(array, PLAIN), tmp_path / "seg.nii.gz")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("spacing", "origin", "direction", "part"),
    [
        ((0.0, 1, 1), (0, 0, 0), None, "spacing"),
        ((1, 1, 1), (float("nan"), 0, 0), None, "not finite"),
        ((1, 1, 1), (0, 0, 0), (1.0, 0.2, 0, 0, 1, 0, 0, 0, 1), "sheared"),
        ((1, 1, 1), (1e9 + 0.3, 0, 0), None, "cannot carry the geometry: origin"),
        ((1, 1, 1), (0, -1e300, 0), None, "cannot carry the geometry: origin"),
    ],
)
def test_a_geometry_that_nifti_cannot_carry_is_refused(
    tmp_path: Path,
    spacing: tuple[float, float, float],
    origin: tuple[float, float, float],
    direction: tuple[float, ...] | None,
    part: str,
) -> None:
    geometry = Geometry((5, 4, 3), spacing, origin, direction or PLAIN.direction_lps)
    with pytest.raises(OutputError, match=part) as caught:
        write_labels(labels(geometry), tmp_path / "seg.nii.gz")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="folder does not exist"):
        write_labels(labels(), tmp_path / "missing" / "seg.nii.gz")
    (tmp_path / "seg.nii.gz").mkdir()
    with pytest.raises(OutputError, match="found a folder"):
        write_labels(labels(), tmp_path / "seg.nii.gz")


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(image: object, path: str, **_: object) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(SimpleITK, "WriteImage", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_labels(labels(), tmp_path / "seg.nii.gz")
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_itk_becomes_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object, **__: object) -> None:
        raise RuntimeError("Exception thrown in SimpleITK Write:\n/tmp/a/itkX.cxx:1:\nITK ERROR: X(0x1): no luck")

    monkeypatch.setattr(SimpleITK, "WriteImage", failing)
    with pytest.raises(OutputError, match=r"ITK cannot write it \(no luck\)"):
        write_labels(labels(), tmp_path / "seg.mha")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("edit", ["flip", "mirror", "relabel"])
def test_a_file_that_reads_back_differently_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edit: str
) -> None:
    write = SimpleITK.WriteImage

    def wrong(image: SimpleITK.Image, path: str, **options: bool) -> None:
        if edit == "flip":
            image = SimpleITK.Flip(image, [True, False, False])
        elif edit == "mirror":
            image.SetDirection([-1, 0, 0, 0, 1, 0, 0, 0, 1])
        else:
            image = image + 1
        write(image, path, **options)

    monkeypatch.setattr(SimpleITK, "WriteImage", wrong)
    with pytest.raises(OutputError):
        write_labels(labels(), tmp_path / "seg.nrrd")
    assert list(tmp_path.iterdir()) == []


FULL_DISK = """
import resource, sys
import numpy as np
from masksam_deploy.base.errors import OutputError
from masksam_deploy.io import write_labels
from masksam_deploy.base.volume import Geometry, Volume
# A limit on the file size stops a write half way, as a full disk does.
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
array = np.zeros((20, 20, 20), np.uint8)
if sys.argv[1].endswith(".gz"):
    array[:] = np.random.default_rng(0).integers(0, 255, array.shape)
geometry = Geometry((20, 20, 20), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
try:
    write_labels(Volume(array, geometry), sys.argv[1])
except OutputError as error:
    sys.exit(str(error))
"""


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_a_disk_that_fills_up_gives_an_error_and_no_file(tmp_path: Path, suffix: str) -> None:
    # The labels end in zeros, which is what ITK reads where a NIfTI file is cut off.
    path = tmp_path / f"seg{suffix}"
    run = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, check=False, timeout=60
    )
    assert run.returncode == 1
    assert "check the disk" in run.stderr
    assert "Traceback" not in run.stderr
    assert list(tmp_path.iterdir()) == []


def test_every_axis_order_and_sign_of_a_real_grid_is_kept(tmp_path: Path) -> None:
    for order, sign in itertools.product(itertools.permutations(range(3)), (1.0, -1.0)):
        axes = np.eye(3)[:, list(order)] * (sign, 1, 1)
        geometry = Geometry((5, 4, 3), (0.7, 0.8, 2.5), (-12.5, 30.25, 400.125), tuple(map(float, axes.ravel())))
        write_labels(labels(geometry), tmp_path / "seg.nii.gz")
        np.testing.assert_allclose(
            read_volume(tmp_path / "seg.nii.gz").geometry.direction_lps, geometry.direction_lps, atol=1e-7
        )


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_full_disk_is_named_though_itk_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    write = SimpleITK.WriteImage

    def cut(image: SimpleITK.Image, path: str, **options: bool) -> None:
        write(image, path, **options)
        Path(path).write_bytes(Path(path).read_bytes()[:-30])

    def failing(*_: object, **__: object) -> None:
        raise RuntimeError("no luck")

    def full(path: Path) -> SimpleNamespace:
        assert path == tmp_path
        return SimpleNamespace(free=0)

    monkeypatch.setattr(SimpleITK, "WriteImage", cut)
    with pytest.raises(OutputError, match="does not read back"):
        write_labels(labels(), tmp_path / f"seg{suffix}")
    monkeypatch.setattr(shutil, "disk_usage", full)
    with pytest.raises(OutputError, match="the disk is full; free some space"):
        write_labels(labels(), tmp_path / f"seg{suffix}")
    monkeypatch.setattr(SimpleITK, "WriteImage", failing)
    with pytest.raises(OutputError, match="the disk is full; free some space"):
        write_labels(labels(), tmp_path / f"seg{suffix}")
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_no_file_can_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="letters that file names cannot have"):
        write_labels(labels(), tmp_path / "half\ud800.nii.gz")


def test_a_path_that_is_not_utf8_is_refused_before_it_aborts_itk(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    for path in (tmp_path / os.fsdecode(b"caf\xe9.nii.gz"), folder / "seg.nrrd"):
        with pytest.raises(OutputError, match="the path holds bytes that are not UTF-8"):
            check_label_name(path)
        with pytest.raises(OutputError, match="the path holds bytes that are not UTF-8"):
            write_labels(labels(), path)
    assert list(folder.iterdir()) == []
    assert list(tmp_path.iterdir()) == [folder]
