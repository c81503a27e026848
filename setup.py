"""The extension in C, and the page for package indexes; everything else about the package is in pyproject.toml.

The extension is optional. Where there is no C compiler, or Python's headers are missing, and on builds of Python without a GIL,
which have no limited API, the package is installed without it: requests are read by Python then.
"""

import platform
import re
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel

PAGES = "https://github.com/forkserve/forkserve/blob/main/"
FOLDER = "forkserve/http/message"
HAS_LIMITED_API = platform.python_implementation() == "CPython" and not sysconfig.get_config_var("Py_GIL_DISABLED")


class Wheel(bdist_wheel):
    """A wheel whose name says that it is for any machine if the extension could not be built."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return the tag of the wheel; the extension has been built."""
        if not any(Path(path).exists() for path in self.get_finalized_command("build_ext").get_outputs()):
            self.root_is_pure = True
        return super().get_tag()


head = Extension(
    "forkserve.http.message._head",
    [f"{FOLDER}/_head.c"],
    depends=[f"{FOLDER}/_scan.h"],
    extra_compile_args=["-O3"],
    py_limited_api=True,
    optional=True,
)
# Package indexes show the README without the pages that it links to.
readme = re.sub(r"\]\((?!https?:|#)", f"]({PAGES}", Path("README.md").read_text(encoding="utf-8"))
setup(
    long_description=readme,
    long_description_content_type="text/markdown",
    cmdclass={"bdist_wheel": Wheel},
    ext_modules=[head] if HAS_LIMITED_API else [],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if HAS_LIMITED_API else {},
)
