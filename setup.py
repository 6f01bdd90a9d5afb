"""The package is `lib` in a checkout and `redbook` where it is installed; all else is in pyproject.toml."""

from setuptools import setup
from setuptools.command.editable_wheel import editable_wheel


class EditableAsLib(editable_wheel):
    """An editable install gives the checkout both names: `lib` for chapters and tests, `redbook` for its command."""

    def run(self) -> None:
        self.distribution.package_dir["lib"] = "lib"
        self.distribution.packages += [
            "lib" + name.removeprefix("redbook") for name in list(self.distribution.packages)
        ]
        super().run()


setup(cmdclass={"editable_wheel": EditableAsLib})
