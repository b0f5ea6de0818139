"""The environment of each package: its pinned versions beside those of the main environment."""

import importlib
import pkgutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import thirdparty.packages

ROOT = Path(__file__).parents[1]
RECORDS = Path(__file__).with_name("records")
PACKAGES = sorted(part.name for part in pkgutil.iter_modules(thirdparty.packages.__path__))


def python(package: str) -> Path:
    """The Python of a package's environment, which is built if its requirements have changed."""
    home = importlib.import_module(f"thirdparty.packages.{package}")
    if not home.REQUIREMENTS:
        return Path(sys.executable)
    folder = ROOT / ".venv-thirdparty" / package
    found, wanted = folder / "requirements.txt", "\n".join(home.REQUIREMENTS) + "\n"
    executable = folder / "bin" / "python"
    if found.exists() and found.read_text() == wanted:
        return executable
    venv.create(folder, clear=True, with_pip=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    # pip finds the packages of the main environment through this file, and installs only what is missing there.
    (site / "beside.pth").write_text(sysconfig.get_path("purelib") + "\n")
    subprocess.run([executable, "-m", "pip", "install", "--quiet", *home.REQUIREMENTS], check=True)
    for name in getattr(home, "WITHOUT", ()):
        subprocess.run([executable, "-m", "pip", "uninstall", "--quiet", "--yes", name], check=True)
    found.write_text(wanted)
    return executable
