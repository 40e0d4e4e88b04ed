"""File names in UTF-8 are read and written whatever the locale says about names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

READ_AND_WRITE = """
import os, sys
from pathlib import Path
import numpy as np
from masksam_deploy.io.itk import open_itk_file
from masksam_deploy.io import read_volume, write_labels
from masksam_deploy.base.volume import Volume
folder = os.fsdecode(bytes.fromhex(sys.argv[1]))
for name in sorted(os.listdir(folder)):
    path = Path(folder, name)
    if name.endswith(".raw"):
        continue
    channel = open_itk_file(path)
    values = np.empty(channel.geometry.shape_zyx, np.uint8)
    channel.read_into(values)
    for suffix in (".nii", ".nii.gz", ".nrrd", ".mha"):
        target = Path(folder, "written-" + name.replace(".", "-") + suffix)
        write_labels(Volume(values, channel.geometry), target)
    assert np.array_equal(read_volume(path).array[0], values)
print(sys.getfilesystemencoding())
"""
LOCALES = {
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "POSIX": {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "UTF-8": {"LC_ALL": "C.UTF-8"},
    "no locale of that name": {"LC_ALL": "tr_TR.ISO-8859-9", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


@pytest.mark.parametrize("locale", LOCALES)
@pytest.mark.skipif(sys.platform == "win32", reason="names are UTF-16 there")
def test_names_in_utf8_are_read_and_written_in_every_locale(tmp_path: Path, locale: str) -> None:
    folder = tmp_path / "\u0130stanbul \u809d"
    folder.mkdir()
    image = SimpleITK.GetImageFromArray(np.arange(60, dtype=np.uint8).reshape(3, 4, 5))
    names = [f"tarama-\u015f{suffix}" for suffix in (".nii.gz", ".nrrd", ".mhd", ".nhdr")]
    for name in names:
        SimpleITK.WriteImage(image, str(folder / name))
    run = subprocess.run(
        [sys.executable, "-c", READ_AND_WRITE, os.fsencode(folder).hex()],
        env=os.environ | LOCALES[locale],
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert (run.returncode, run.stderr) == (0, b"")
    for name in names:
        for suffix in (".nii", ".nii.gz", ".nrrd", ".mha"):
            again = SimpleITK.ReadImage(str(folder / f"written-{name.replace('.', '-')}{suffix}"))
            np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(again), SimpleITK.GetArrayFromImage(image))
