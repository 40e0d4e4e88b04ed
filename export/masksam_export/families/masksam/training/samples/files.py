"""What all parts of the sample data share: reading small text files, listing folders, comparing names."""

from __future__ import annotations

import re
from pathlib import Path

from masksam_deploy.base.errors import DatasetError
from masksam_deploy.base.text import one_line, shown
from masksam_deploy.io.dicom import check_kind

_TEXT_LIMIT = 2**20
_LEADING_ZEROS = re.compile(r"(?<![0-9])0+(?=[0-9])")


def read_text(path: Path) -> str:
    """The text of a small file.

    Raises:
        DatasetError: it is missing, cannot be read, is larger than 1 MiB or not UTF-8.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_TEXT_LIMIT + 1)
        if len(data) > _TEXT_LIMIT:
            raise DatasetError(f"{shown(path)}: found more than 1 MiB, expected a few lines; copy the file again")
        return data.decode("utf-8-sig")
    except OSError as error:
        raise unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{shown(path)}: found bytes that are no text, expected UTF-8; copy it again") from error


def visible_files(folder: Path, *, deep: bool = False) -> list[Path]:
    """The files in a folder (`deep`: and below it), sorted, without hidden ones such as `.DS_Store`.

    Raises:
        DatasetError: there is no such folder, or it cannot be read.
        ScanError: a link in it leads nowhere.
    """
    if not folder.is_dir():
        raise DatasetError(f"{shown(folder)}: found no such folder, expected it in the sample data; copy it again")
    try:
        found = [path for path in (folder.rglob("*") if deep else folder.iterdir()) if not path.name.startswith(".")]
        for path in found:
            check_kind(path)
        return sorted(path for path in found if path.is_file())
    except OSError as error:
        raise unreadable(folder, error) from error


def unreadable(path: Path, error: OSError) -> DatasetError:
    """What to say when the system refuses to read."""
    reason = one_line(error.strerror or str(error))
    return DatasetError(f"{shown(path)}: cannot be read: {reason}; check the path and permissions")


def same_patient_key(patient: str) -> str:
    """A patient's name without leading zeros: the DICOM part says SC-HF-I-4 where the PNG part says SC-HF-I-04."""
    return _LEADING_ZEROS.sub("", patient)
