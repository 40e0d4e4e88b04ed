"""`masksam-deploy prepare-sample-data`. Needs no torch."""

from __future__ import annotations

from pathlib import Path

import click

from masksam_deploy.base.text import printable


@click.command(short_help="Make a training data set of public sample data.")
@click.argument("source", type=click.Path(path_type=Path))
@click.option(
    "--data", type=click.Choice(["sunnybrook", "hippocampus"]), default="sunnybrook", show_default=True, help="Which."
)
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="Directory of the nnU-Net raw data set."
)
@click.option("--force", is_flag=True, help="Replace an earlier sample data set.")
def prepare_sample_data(source: Path, data: str, output: Path, force: bool) -> None:
    """Make an nnU-Net raw data set of public sample data.

    Sunnybrook (heart): SOURCE holds scd_cardiac_png and scd_cardiac_dicom. Hippocampus (brain): SOURCE holds imagesTr
    and labelsTr of the Medical Segmentation Decathlon's Task04, or hippocampus_msd with them. Contours of the wrong
    patient, images without labels and the like are refused, and then nothing is written.
    """
    from masksam_deploy.base.optional import OptionalPackage

    OptionalPackage("PIL", "pillow", "cpu", "prepare-sample-data").require()
    from masksam_deploy.cli.progress import progress_bar
    from masksam_export.families.masksam.training.samples.hippocampus import prepare_hippocampus
    from masksam_export.families.masksam.training.samples.sunnybrook import prepare_sunnybrook

    prepare = prepare_sunnybrook if data == "sunnybrook" else prepare_hippocampus
    with progress_bar("checking") as progress:
        shown = {} if progress is None else {"step": progress}
        prepared = prepare(source, output, force=force, **shown)
    stacks = f", labels of {prepared.dicom_stacks} DICOM stacks" if prepared.dicom_stacks else ""
    click.echo(f"wrote {printable(prepared.path)}: {prepared.training} training and {prepared.test} test cases{stacks}")
    click.echo(f"next: masksam-deploy train {printable(prepared.path)} -o RUN")
