"""`masksam-deploy infer` on one scan: what lies beside it stays, and two places in its header are told and kept."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from masksam_deploy.io import read_volume
from tests.cli.infer.calls import done, invoke, refused, report_in
from tests.engines.small_bundle import ball_scan

MHD = (
    "ObjectType = Image\nNDims = 3\nElementSpacing = 1 1 1\nDimSize = {}\nElementType = MET_FLOAT\n"
    "ElementDataFile = {}\n"
)
NHDR = (
    "NRRD0004\ntype: float\ndimension: 3\nspace: left-posterior-superior\nsizes: {}\nendian: little\nencoding: raw\n"
    "space directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\ndata file: {}\n\n"
)


@pytest.mark.parametrize(("header", "text"), [("scan.mhd", MHD), ("scan.nhdr", NHDR)])
def test_output_over_the_voxels_of_a_detached_header_is_refused(
    bundle: Path, tmp_path: Path, header: str, text: str
) -> None:
    values = ball_scan(0)[0].channels_czyx[0]
    voxels = tmp_path / "voxels.nrrd"
    voxels.write_bytes(values.astype("<f4").tobytes())
    sizes = " ".join(map(str, reversed(values.shape)))
    (tmp_path / header).write_text(text.format(sizes, voxels.name))
    before = voxels.read_bytes()
    assert "the scan itself" in refused(tmp_path / header, "-b", bundle, "-o", voxels)
    assert voxels.read_bytes() == before
    done(tmp_path / header, "-b", bundle, "-o", tmp_path / "labels.nrrd")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(("qform_code", "sform_code", "used"), [(1, 1, "sform"), (1, 4, "qform"), (3, 2, "qform")])
def test_two_places_of_a_header_are_told_and_kept_alone_and_among_many(
    bundle: Path, tmp_path: Path, suffix: str, qform_code: int, sform_code: int, used: str
) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    scan = scans / f"two places{suffix}"
    qform, sform = np.diag([1.0, 1, 1, 1]), np.array([[0.0, -1, 0, 9], [1, 0, 0, -7], [0, 0, 1, 5], [0, 0, 0, 1]])
    image = nibabel.Nifti1Image(ball_scan(0)[0].channels_czyx[0].transpose(2, 1, 0), sform)
    image.set_qform(qform, qform_code)
    image.set_sform(sform, sform_code)
    nibabel.save(image, scan)
    alone = invoke(scan, "-b", bundle, "-o", tmp_path / f"alone{suffix}", "--report", tmp_path / "alone.json")
    many = invoke(scans, "-b", bundle, "-o", tmp_path / "out", "--suffix", suffix)
    for result, told in (
        (alone, json.loads((tmp_path / "alone.json").read_text())["warnings"]),
        (many, report_in(tmp_path / "out")["scans"][0]["report"]["warnings"]),
    ):
        assert result.exit_code == 0, result.stderr
        (warning,) = told
        assert f"the {used} is used" in warning
        assert result.stderr.count(warning) == 1
    for labels in (tmp_path / f"alone{suffix}", tmp_path / "out" / scan.name):
        written = nibabel.load(labels)
        for form, code, affine in (("qform", qform_code, qform), ("sform", sform_code, sform)):
            stated, stated_code = getattr(written, f"get_{form}")(coded=True)
            assert stated_code == code
            np.testing.assert_allclose(stated, affine, atol=1e-6)
        assert read_volume(labels).geometry == read_volume(scan).geometry
