"""What lies in the model repository on disk."""

from pathlib import Path

from millis_server.manifest_files import MANIFEST_FILE

CONFIG_FILE = "config.pbtxt"


class RepositoryError(ValueError):
    """A repository that cannot be served; the message is one line and names the folder."""


def scan(repository: Path) -> dict[str, list[str]]:
    """Lists the published versions of each variant.

    Folders whose name begins with a dot are being written. A version counts once its manifest is there: it is
    published by a rename, so the rest of it is there too.

    Args:
        repository: the model repository.

    Returns:
        For each variant folder its versions, the newest first. Variants without a version are left out.

    Raises:
        RepositoryError: the folder does not exist or cannot be read.
    """
    try:
        folders = [folder for folder in repository.iterdir() if not folder.name.startswith(".")]
    except OSError as error:
        raise RepositoryError(f"model repository {repository}: {error.strerror}") from error
    found = {}
    for folder in folders:
        if not (folder / CONFIG_FILE).is_file():
            continue
        versions = [path.parent.name for path in folder.glob(f"*/{MANIFEST_FILE}")]
        numbers = sorted((int(name) for name in versions if name.isdecimal()), reverse=True)
        if numbers:
            found[folder.name] = [str(number) for number in numbers]
    return found


def config_stamp(folder: Path) -> tuple[int, int]:
    """Tells one config.pbtxt of a variant from the next: it differs after a write and after a rename.

    Args:
        folder: of the variant.

    Returns:
        Time of change in nanoseconds and inode; zeros when the file is gone.
    """
    try:
        found = (folder / CONFIG_FILE).stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_ino
