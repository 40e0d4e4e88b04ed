"""A kernel pack that travels in a bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from masksam_deploy.base.errors import BundleError, ExportError
from masksam_deploy.bundle.archive import pack as packed
from masksam_deploy.bundle.archive import unpack
from masksam_deploy.bundle.directory import Bundle
from masksam_export.families.masksam.bundled_kernels import copy_pack, fitting_pack
from masksam_export.families.masksam.official import ACDC
from masksam_kernels.pack import read_pack
from tests.example_kernels import make_pack
from tests.export.golden import Golden

WIDTHS = {ACDC.adapter_dim, ACDC.decoder_adapter_dim}


def test_a_bundle_carries_its_kernels_like_any_other_file(node_bundle: Path, tmp_path: Path) -> None:
    config = Golden.read("tiny_acdc").model().config
    source = make_pack(tmp_path / "p", {config.adapter_dim, config.decoder_adapter_dim})
    bundle = Bundle.load(node_bundle)
    assert bundle.kernels == bundle.path / "kernels"
    assert read_pack(bundle.kernels).kernels == source.kernels
    assert set(bundle.manifest.files) > {f"kernels/{path.name}" for path in source.folder.iterdir()}

    archive = packed(bundle.path, tmp_path / "lv.zip")
    again = unpack(archive, tmp_path / "again.masksam")
    assert again.sha256 == bundle.sha256
    assert read_pack(again.path / "kernels").kernels == source.kernels

    code = again.path / "kernels" / source.kernels[0].cubin
    code.write_bytes(code.read_bytes()[::-1])
    with pytest.raises(BundleError, match="was changed after export"):
        Bundle.load(again.path)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    widths=st.sets(st.sampled_from([16, *WIDTHS, 320])),
    architectures=st.sets(st.sampled_from([87, 90]), min_size=1),
    only_one=st.booleans(),
)
def test_a_pack_fits_if_every_gpu_that_it_is_for_has_all_adapters(
    widths: set[int], architectures: set[int], only_one: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """`only_one`: the last architecture has the narrowest width alone."""
    pack = make_pack(
        tmp_path_factory.mktemp("packs") / "p",
        widths,
        architectures,
        leave_out={(max(architectures), width) for width in sorted(widths)[1:]} if only_one else set(),
    )
    if widths >= WIDTHS and not only_one:
        assert fitting_pack(pack.folder, ACDC, "node") == pack
        copy_pack(pack, pack.folder.with_name("copy"))
        assert {path.name: path.read_bytes() for path in pack.folder.with_name("copy").iterdir()} == {
            path.name: path.read_bytes() for path in pack.folder.iterdir()
        }
    else:
        with pytest.raises(ExportError, match=r"expected kernels for adapters of 64 and 192 channels; build a pack"):
            fitting_pack(pack.folder, ACDC, "node")


def test_a_pack_is_refused_before_any_work_is_done(tmp_path: Path) -> None:
    fits = make_pack(tmp_path / "fits", WIDTHS)
    with pytest.raises(ExportError, match=r"found adapters as 'planes', expected nodes.* add --adapters node"):
        fitting_pack(fits.folder, ACDC, "planes")
    active = make_pack(tmp_path / "active", WIDTHS, activate=False)
    with pytest.raises(ExportError, match="found none for 64 channels in fp16 on sm_87"):
        fitting_pack(active.folder, ACDC, "node")
    with pytest.raises(ExportError, match="is no kernel pack"):
        fitting_pack(tmp_path, ACDC, "node")
    (fits.folder / fits.kernels[0].ptx).write_text("something else")
    with pytest.raises(ExportError, match="is not the file that the pack was made with"):
        fitting_pack(fits.folder, ACDC, "node")


def test_one_width_serves_a_network_whose_adapters_are_alike(tmp_path: Path) -> None:
    config = replace(ACDC, decoder_adapter_dim=ACDC.adapter_dim)
    pack = make_pack(tmp_path / "p", {ACDC.adapter_dim})
    assert fitting_pack(pack.folder, config, "node") == pack


def test_a_pack_that_changes_while_it_is_copied_leaves_no_bundle(tmp_path: Path) -> None:
    pack = fitting_pack(make_pack(tmp_path / "p", WIDTHS).folder, ACDC, "node")
    (pack.folder / pack.kernels[-1].cubin).write_bytes(b"something else")
    with pytest.raises(ExportError, match="is not the file that the pack was made with"):
        copy_pack(pack, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
