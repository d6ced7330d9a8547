"""Package metadata: the lowest versions, with which `make lowest` runs the tests; constraints.txt has those of `make test`."""

import re
import subprocess
import sys
from glob import glob
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).resolve().parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "up" / "__init__.py").read_text(encoding="utf-8")).group(1)

DEPLOY = ["onnx>=1.19", "onnxscript>=0.7.2", "onnxruntime>=1.22"]
VIZ = ["matplotlib>=3.11", "jinja2>=3.1", "scipy>=1.13"]  # scipy: Student's t of up compare --seeds
SEARCH = ["optuna>=5.0", "cmaes>=0.12", "scipy>=1.13"]  # scipy: of Optuna's gp and of cmaes, which do not name it
SERVE = ["fastapi>=0.115", "uvicorn>=0.34", "python-multipart>=0.0.34", "prometheus_client>=0.21"]
DEMO = ["scikit-learn>=1.5", *VIZ]
# sqlalchemy and alembic: of the databases of MLflow, which its small package does not name
TRACKERS = ["wandb>=0.19", "mlflow-skinny>=3.0", "sqlalchemy>=2.0", "alembic>=1.10", "clearml>=2.0"]
FAST = ["torchcodec>=0.16", "simplejpeg>=1.9"]  # decoders of JPEG where the extensions below are not built


class OptionalExtensions(build_ext):
    """Build what this machine can build, and skip the rest with a line: other libraries do the same, more slowly."""

    def build_extension(self, ext):
        try:
            if ext is JPEG:
                self._expect_header()
            super().build_extension(ext)
        except Exception as error:  # no compiler, another one, no Python.h: each raises its own
            what = "steps of LAMB on a CPU" if ext is LAMB else "reading of images"
            print(f"skipped {ext.name}, which makes {what} faster: {error}", file=sys.stderr)

    def _expect_header(self):
        command = [*getattr(self.compiler, "compiler", ["cc"]), *(f"-I{folder}" for folder in self.compiler.include_dirs)]
        source = b"#include <stdio.h>\n#include <jpeglib.h>\n"
        if subprocess.run([*command, "-E", "-"], input=source, capture_output=True).returncode:
            raise FileNotFoundError("jpeglib.h is missing (Debian: libjpeg62-turbo-dev; libjpeg-turbo-devel, libjpeg-turbo8-dev)")


def extension(name, *flags):
    path = f"up/{name.replace('.', '/')}"
    options = ["-O3", "-ffp-contract=off", *flags]
    headers = ["up/_wide.h", *glob(f"{path}_*.h")]
    return Extension(f"up.{name}", [f"{path}.c"], depends=headers, extra_compile_args=options, optional=True)


# Nothing is linked: libjpeg-turbo is the one in Pillow. A fused multiply-add rounds once less than Pillow and torchvision do, and
# than processors without it. A square root that may set errno does not become a vector.
JPEG, PIXELS, RESIZE = map(extension, ("data._jpeg", "data._pixels", "data._resize"))
LAMB = extension("optim._lamb", "-fno-math-errno")

setup(
    name="up-perception",  # the plain name is taken on PyPI
    version=VERSION,
    description="Train, distil, evaluate, export and serve image classifiers from one YAML file.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["up", "up.*"]),
    package_data={"up": ["py.typed", "bundle/*.json", "data/*.pyi", "optim/*.pyi", "*/*.html", "*/*.css", "*/*.js"]},
    ext_modules=[JPEG, PIXELS, RESIZE, LAMB],
    cmdclass={"build_ext": OptionalExtensions},
    install_requires=[
        "torch>=2.14.1",
        "torchvision>=0.29.1",
        "timm>=1.0.31",
        "pyyaml>=6.0.1",
        "pydantic>=2.11",
        "pillow>=12.1",
        "numpy>=2.2",
        "safetensors>=0.4",
        "tensorboardX>=2.6.2.2",
        "rich>=14.3",
    ],
    extras_require={
        "deploy": DEPLOY,
        "demo": DEMO,
        "viz": VIZ,
        "search": SEARCH,
        "fast": FAST,
        "trackers": TRACKERS,
        "browser": ["playwright>=1.50"],  # drives the machine's Chromium: tests of the pages, and their screenshots
        "serve": [*SERVE, "onnxruntime>=1.22"],
        "dev": [
            *DEPLOY,
            *DEMO,
            *SEARCH,
            *SERVE,
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "pyte>=0.8",
            "ruff>=0.12",
            "mypy>=1.15",
            "types-PyYAML>=6.0",
        ],
    },
    entry_points={"console_scripts": ["up = up.__main__:main"]},
)
