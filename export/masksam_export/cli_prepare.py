"""`masksam-deploy prepare-sample-data`. Needs no torch."""

from __future__ import annotations

from pathlib import Path

import click

from masksam_deploy.base.text import printable
from masksam_deploy.cli.help import Command

EXAMPLES = {
    "Prepare the heart data": "masksam-deploy prepare-sample-data sunnybrook/ -o Dataset001_Heart",
    "Prepare the brain data": "masksam-deploy prepare-sample-data hippocampus_msd/ -o Dataset002_Brain \\\n"
    "    --data hippocampus",
}


@click.command(cls=Command, short_help="Make a training data set from public sample data.", examples=EXAMPLES)
@click.argument("source", type=click.Path(path_type=Path))
@click.option(
    "--data",
    type=click.Choice(["sunnybrook", "hippocampus"]),
    default="sunnybrook",
    show_default=True,
    help="Which sample data SOURCE holds.",
)
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="Directory to write: an nnU-Net raw data set.",
)
@click.option("--force", is_flag=True, help="Replace an earlier sample data set.")
def prepare_sample_data(source: Path, data: str, output: Path, force: bool) -> None:
    """Make an nnU-Net raw data set from public sample data.

    Sunnybrook (heart): SOURCE holds scd_cardiac_png and scd_cardiac_dicom. Hippocampus (brain): SOURCE holds imagesTr
    and labelsTr of the Medical Segmentation Decathlon's Task04, or a folder hippocampus_msd with both. Contours of the
    wrong patient, images without labels and similar defects are refused; nothing is written then.
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
