from setuptools import find_packages, setup

# The folder configs/ is, in what is installed, the package tljax.configs: pyproject.toml cannot say so beside a search.
setup(packages=[*find_packages(include=["tljax*"]), "tljax.configs"], package_dir={"tljax.configs": "configs"})
