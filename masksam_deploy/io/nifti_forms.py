"""The two places that a NIfTI header may state, and which of them a scan lies at.

Readers choose between qform and sform by different rules, so two forms that differ put a scan at two places. The one
that ITK takes is used; a NIfTI label map states both again, so that whatever a reader takes, it takes for both files.
Source: https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h and `nifti_quatern_to_mat44` beside it.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from masksam_deploy.base.errors import ScanError
from masksam_deploy.base.volume import Geometry, NiftiForms
from masksam_deploy.io.grid import ORTHONORMAL_TOLERANCE, affine_lps, corner_shift_mm, times

Affine = NDArray[np.float64]

_HEADER_BYTES = 348
_HIGHEST_CODE = 5
# nifti1_io takes such a rotation as half a turn, and scales the quaternion to length 1.
_HALF_TURN = 1e-7
# What rounding to a few decimals explains; nibabel refuses a longer quaternion, ITK shortens it.
_LONGEST_QUATERNION = 1 + 1e-4
# ITK turns a slightly skewed matrix into a rotation; a tenth of a voxel at the far corner is more than that does, and
# more than two forms differ by that were rounded to float32 each.
SAME_PLACE_VOXELS = 0.1
# From here on both forms are kept: a label map would otherwise state one of them twice.
_KEPT_VOXELS = 0.01


@dataclass(frozen=True)
class StatedForms:
    """The forms of one header.

    Attributes:
        affines_lps: the 3x4 matrices by `qform` and `sform`; what has code 0 is left out.
        stored: the same as in the file.
    """

    affines_lps: dict[str, Affine]
    stored: NiftiForms


def stated_forms(raw: bytes, order: str, what: str) -> StatedForms:
    """Read both forms of a 348-byte header in byte order `order`.

    Raises:
        ScanError: none is stated, a code or a number is impossible, or one form mirrors the other.
    """
    pixdim = struct.unpack_from(f"{order}8f", raw, 76)
    stored = _stored_forms(raw, order, pixdim[0], what)
    ras: dict[str, Affine] = {}
    if stored.sform_code > 0:
        ras["sform"] = np.array(stored.sform).reshape(3, 4)
    if stored.qform_code > 0:
        if pixdim[0] not in (-1, 0, 1):
            raise ScanError(
                f"{what}: found a qform with a handedness (pixdim[0]) of {pixdim[0]:g}, expected 1 or -1; repair the "
                "header"
            )
        ras["qform"] = _qform(stored, pixdim, what)
    if not ras:
        # Readers disagree on what such a file means: ITK takes LPS axes, others RAS. A guess may mirror it.
        raise ScanError(f"{what}: found neither qform nor sform, expected a stated orientation; set one in the header")
    for name, affine in ras.items():
        if not np.isfinite(affine).all():
            raise ScanError(f"{what}: found a {name} that is not finite, expected numbers; repair the header")
    if len(ras) == 2 and np.linalg.det(ras["sform"][:, :3]) * np.linalg.det(ras["qform"][:, :3]) < 0:
        raise ScanError(
            f"{what}: found a qform and an sform that are mirror images of each other, expected the same handedness; "
            "decide which side is left and rewrite the header"
        )
    return StatedForms({name: np.diag([-1.0, -1.0, 1.0]) @ affine for name, affine in ras.items()}, stored)


def check_forms(
    forms: StatedForms, spacing_xyz: tuple[float, float, float], size_xyz: tuple[int, int, int], what: str
) -> None:
    """Check that every stated form places voxels of `spacing_xyz` mm at right angles, so that two differ rigidly.

    Raises:
        ScanError: one does not.
    """
    for name, affine in forms.affines_lps.items():
        _check_axes(name, affine, what)
        _check_sizes(name, affine, np.asarray(spacing_xyz), size_xyz, what)


def placed(geometry: Geometry, forms: StatedForms, what: str) -> tuple[Geometry, tuple[str, ...]]:
    """The grid that ITK derived with both forms, where they differ, and what to tell about that.

    Raises:
        ScanError: ITK derived a grid that no form states.
    """
    itk = affine_lps(geometry)
    voxel = min(geometry.spacing_xyz)
    shifts = {name: corner_shift_mm(itk, affine, geometry.size_xyz) for name, affine in forms.affines_lps.items()}
    used = min(shifts, key=lambda name: shifts[name])
    if not shifts[used] <= SAME_PLACE_VOXELS * voxel:
        raise ScanError(
            f"{what}: found sizes and orientation that contradict each other (ITK's grid lies {shifts[used]:.3g} mm "
            f"off the {used}), expected one consistent geometry; rewrite the header, e.g. by resampling the scan"
        )
    if len(shifts) == 1:
        return geometry, ()
    apart = corner_shift_mm(forms.affines_lps["qform"], forms.affines_lps["sform"], geometry.size_xyz)
    if apart <= _KEPT_VOXELS * voxel:
        return geometry, ()
    both = Geometry(
        geometry.size_xyz, geometry.spacing_xyz, geometry.origin_lps, geometry.direction_lps, nifti_forms=forms.stored
    )
    if apart <= SAME_PLACE_VOXELS * voxel:
        return both, ()
    return both, (
        f"The header states two places, qform (code {forms.stored.qform_code}) and sform (code "
        f"{forms.stored.sform_code}), up to {apart:.3g} mm apart: the {used} is used, and a NIfTI label map states "
        "both again.",
    )


def put_forms(header: bytearray, forms: NiftiForms) -> None:
    """Write both forms into a 348-byte NIfTI header; sizes and voxel sizes stay.

    Raises:
        struct.error, OverflowError: a number is beyond what the header holds.
    """
    order = byte_order(header)
    struct.pack_into(f"{order}f", header, 76, forms.qfac)
    struct.pack_into(f"{order}2h", header, 252, forms.qform_code, forms.sform_code)
    struct.pack_into(f"{order}6f", header, 256, *forms.quaternion, *forms.offset)
    struct.pack_into(f"{order}12f", header, 280, *forms.sform)


def byte_order(header: bytes | bytearray) -> str:
    """`<` or `>`, by the length that a NIfTI-1 header states first."""
    return "<" if struct.unpack_from("<i", header)[0] == _HEADER_BYTES else ">"


def _stored_forms(raw: bytes, order: str, qfac: float, what: str) -> NiftiForms:
    codes = struct.unpack_from(f"{order}2h", raw, 252)
    for name, code in zip(("qform", "sform"), codes, strict=True):
        if not 0 <= code <= _HIGHEST_CODE:
            raise ScanError(f"{what}: found a {name}_code of {code}, expected 0 to {_HIGHEST_CODE}; repair the header")
    b, c, d, x, y, z = struct.unpack_from(f"{order}6f", raw, 256)
    return NiftiForms(
        qform_code=codes[0],
        sform_code=codes[1],
        qfac=qfac,
        quaternion=(b, c, d),
        offset=(x, y, z),
        sform=struct.unpack_from(f"{order}12f", raw, 280),
    )


def _qform(forms: NiftiForms, pixdim: tuple[float, ...], what: str) -> Affine:
    b, c, d = forms.quaternion
    length = b * b + c * c + d * d
    if length > _LONGEST_QUATERNION:
        raise ScanError(
            f"{what}: found a qform with a quaternion of length {math.sqrt(length):.6g}, expected at most 1; repair "
            "the header"
        )
    if 1.0 - length < _HALF_TURN:
        a = 0.0
        b, c, d = (v / math.sqrt(length) for v in (b, c, d))
    else:
        a = math.sqrt(1.0 - length)
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    handedness = -1.0 if forms.qfac < 0 else 1.0  # the standard takes 0 as 1
    return np.column_stack([rotation * np.array([pixdim[1], pixdim[2], handedness * pixdim[3]]), forms.offset])


def _check_axes(name: str, affine: Affine, what: str) -> None:
    lengths = np.linalg.norm(affine[:, :3], axis=0)
    if not lengths.min() > 0:
        raise ScanError(f"{what}: found a {name} with an axis of no length, expected voxel sizes; repair the header")
    unit = affine[:, :3] / lengths
    sheared = float(np.abs(unit.T @ unit - np.eye(3)).max())
    if not sheared <= ORTHONORMAL_TOLERANCE:
        raise ScanError(
            f"{what}: found a sheared {name} (axes not at right angles, by {sheared:.2g}), expected right angles; "
            f"resample the scan to an unsheared grid, or take that form out (set {name}_code to 0) if another holds"
        )


def _check_sizes(name: str, affine: Affine, spacing: Affine, size_xyz: tuple[int, int, int], what: str) -> None:
    far = np.abs(affine[:, 3]).max()
    # Rounded to float32, so far from the scanner, a voxel's place is lost.
    if not np.spacing(far.astype(np.float32)) <= SAME_PLACE_VOXELS * spacing.min():
        raise ScanError(
            f"{what}: found a {name} that puts the scan {far:.3g} mm away, expected a place that float32 resolves; "
            "repair the header"
        )
    left, _, right = np.linalg.svd(affine[:, :3] / spacing)
    rigid = np.column_stack([left @ right * spacing, affine[:, 3]])
    if not corner_shift_mm(affine, rigid, size_xyz) <= SAME_PLACE_VOXELS * spacing.min():
        lengths = np.linalg.norm(affine[:, :3], axis=0)
        raise ScanError(
            f"{what}: found voxel sizes that contradict each other, {times(lengths.tolist())} mm in the {name} and "
            f"{times(spacing.tolist())} mm in pixdim, expected one size; rewrite the header, or resample the scan"
        )
