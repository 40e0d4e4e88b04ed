"""Which scans a folder or a list of paths holds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from masksam_deploy.base.errors import ScanError
from masksam_deploy.io import cases as scans
from masksam_deploy.io.cases import ScanFiles, find_scans


def touched(folder: Path, *names: str) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in names]
    for path in paths:
        path.touch()
    return paths


def names(*paths: Path) -> list[str]:
    return [scan.name for scan in find_scans(paths, 1)]


def test_folders_of_dicom_series_and_single_series_are_told_apart(tmp_path: Path) -> None:
    for patient in ("p1", "p2"):
        (tmp_path / patient).mkdir()
        (tmp_path / patient / "1.dcm").touch()
    assert [scan.paths[0].name for scan in find_scans([tmp_path], 1)] == ["p1", "p2"]
    assert [scan.paths[0].name for scan in find_scans([tmp_path / "p1"], 1)] == ["p1"]
    with pytest.raises(ScanError, match="found nothing there"):
        find_scans([tmp_path / "p3"], 1)


def test_a_second_channel_is_no_scan_of_a_model_of_one(tmp_path: Path) -> None:
    files = touched(tmp_path, "a_0000.nii.gz", "a_0001.mha")
    for paths in ([tmp_path], files):
        with pytest.raises(ScanError, match="found a second channel beside a_0000"):
            find_scans(paths, 1)


def test_numbers_of_cases_are_not_taken_for_channels(tmp_path: Path) -> None:
    touched(tmp_path / "files", "case_0001.nii.gz", "case_0002.nii.gz")
    assert [scan.case for scan in find_scans([tmp_path / "files"], 1)] == ["case_0001", "case_0002"]
    for patient in ("patient_0000", "patient_0001"):
        touched(tmp_path / "folders" / patient, "1.dcm")
    assert len(find_scans([tmp_path / "folders"], 1)) == 2


def test_several_channels_are_grouped_by_case(tmp_path: Path) -> None:
    for name in ("b_0000", "b_0001", "a_0001", "a_0000"):
        (tmp_path / f"{name}.nii.gz").touch()
    found = find_scans([tmp_path], 2)
    assert found == [
        ScanFiles(case, (tmp_path / f"{case}_0000.nii.gz", tmp_path / f"{case}_0001.nii.gz")) for case in ("a", "b")
    ]
    (tmp_path / "b_0001.nii.gz").unlink()
    with pytest.raises(ScanError, match=r"case b: found channels \[0\], expected 0 to 1"):
        find_scans([tmp_path], 2)


def test_files_of_several_channels_may_be_listed(tmp_path: Path) -> None:
    files = touched(tmp_path, "a_0001.nii.gz", "a_0000.nii.gz")
    assert find_scans(files, 2) == [ScanFiles("a", (files[1], files[0]))]


def test_cases_of_one_name_in_two_folders_are_two_cases(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        touched(tmp_path / folder, "a_0000.nii.gz", "a_0001.nii.gz")
    found = find_scans([tmp_path / "x", tmp_path / "y"], 2)
    assert [[path.parent.name for path in scan.paths] for scan in found] == [["x", "x"], ["y", "y"]]


def test_a_channel_in_two_types_of_file_is_refused(tmp_path: Path) -> None:
    touched(tmp_path, "a_0000.nii.gz", "a_0000.mha", "a_0001.nii.gz")
    with pytest.raises(ScanError, match=r"found a second file of that channel beside a_0000\.mha"):
        find_scans([tmp_path], 2)


@pytest.mark.parametrize(
    ("inside", "told"),
    [
        (["atlas.nii.gz", "p1/1.dcm"], r"image files \(such as atlas.nii.gz\) and folders \(such as p1\)"),
        (["1.dcm", "2.dcm", "thumbs/1.png"], r"DICOM slices \(such as 1.dcm\) and folders \(such as thumbs\)"),
        (["1.dcm", "mask.nii.gz"], r"image files \(such as mask.nii.gz\) and DICOM slices \(such as 1.dcm\)"),
        (["1.dcm", "mask.nii.gz", "p1/1.dcm"], "image files .* and DICOM slices .* and folders"),
    ],
)
def test_a_folder_of_two_kinds_is_refused_so_that_no_scan_is_passed_over(
    tmp_path: Path, inside: list[str], told: str
) -> None:
    for name in inside:
        touched((tmp_path / name).parent, Path(name).name)
    with pytest.raises(ScanError, match=f"found {told}.*, expected either files"):
        find_scans([tmp_path], 1)


def test_what_is_no_scan_may_lie_beside_scans(tmp_path: Path) -> None:
    touched(tmp_path / "files", "a.nii.gz", "README", "notes.txt", "dataset.json", "b.mhd", "b.raw", ".hidden")
    (tmp_path / "files" / ".cache").mkdir()
    assert names(tmp_path / "files") == ["a.nii.gz", "b.mhd"]
    touched(tmp_path / "disc", "README.txt")
    (tmp_path / "disc" / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    touched(tmp_path / "disc" / "p1", "1.dcm")
    assert names(tmp_path / "disc") == ["p1"]


def test_scans_themselves_are_not_opened_so_that_one_that_cannot_be_read_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(scans, "is_dicom_file", denied)
    touched(tmp_path, "a.nii.gz", "b.nii.gz")
    assert names(tmp_path) == ["a.nii.gz", "b.nii.gz"]
    touched(tmp_path, "notes.txt")
    with pytest.raises(ScanError, match=r"notes\.txt: cannot be read \(Permission denied\)"):
        find_scans([tmp_path], 1)


def test_what_is_set_aside_is_no_scan_and_no_kind(tmp_path: Path) -> None:
    touched(tmp_path, "a.nii.gz")
    touched(tmp_path / "out", "a.nii.gz")
    (tmp_path / "link").symlink_to(tmp_path / "out")
    found = find_scans([tmp_path, tmp_path / "out"], 1, aside={(tmp_path / "out").resolve()})
    assert [scan.paths for scan in found] == [(tmp_path / "a.nii.gz",)]
    with pytest.raises(ScanError, match="found no scan in"):
        find_scans([tmp_path / "out"], 1, aside={(tmp_path / "out").resolve()})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_locked_folder_is_a_refusal(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0)
    with pytest.raises(ScanError, match="cannot be read"):
        find_scans([tmp_path / "locked"], 1)


def test_what_stands_for_a_scan_and_is_none_is_refused(tmp_path: Path) -> None:
    (path,) = touched(tmp_path / "files", "a.nii.gz")
    for name in ("b.nii.gz", "patient"):
        link = path.with_name(name)
        link.symlink_to(tmp_path / "moved" / name)
        for places in ([path.parent], [path, link]):
            with pytest.raises(ScanError, match=f"{name}: found a link that leads nowhere"):
                find_scans(places, 1)
        link.unlink()
    os.mkfifo(link)
    with pytest.raises(ScanError, match="patient: found neither a file nor a folder"):
        find_scans([path.parent], 1)


def test_a_link_that_leads_to_itself_is_refused(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(ScanError, match="loop: found a link that leads nowhere"):
        find_scans([loop], 1)


def test_files_of_other_types_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    touched(folder, "a.nii.gz", "b.mhd", "b.zraw", "c.nhdr", "c.raw.gz", "scan.mgz", "notes.txt", "DICOMDIR", ".hidden")
    told: list[str] = []
    assert len(find_scans([folder], 1, tell=told.append)) == 3
    assert told == [f"{folder}: 2 file(s) of other types were passed over: notes.txt, scan.mgz"]


def test_voxels_that_a_header_names_are_not_called_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    touched(folder, "a.mhd", "b.nhdr", "c.mhd", "voxels of a.raw", "voxels of b.raw", "voxels of nobody.raw")
    (folder / "a.mhd").write_text(
        "NDims = 3\nElementSpacing = 1 1 1\nDimSize = 2 2 2\nElementType = MET_SHORT\n"
        "ElementDataFile = voxels of a.raw\n"
    )
    (folder / "b.nhdr").write_text(
        "NRRD0004\ntype: uchar\ndimension: 3\nspace: LPS\nsizes: 2 2 2\nencoding: raw\ndata file: ./voxels of b.raw\n"
        "space directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\n\n"
    )
    told: list[str] = []
    assert len(find_scans([folder], 1, tell=told.append)) == 3
    assert told == [f"{folder}: 1 file(s) of other types were passed over: voxels of nobody.raw"]
