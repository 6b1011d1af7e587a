"""Builds the C helper for exchanges between devices. Everything else stands in pyproject.toml."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "tpi.native._exchange",
            [f"src/tpi/native/csrc/{name}.c" for name in ("mesh", "payloads", "sums", "program")],
            depends=["src/tpi/native/csrc/exchange.h"],
            extra_compile_args=["-O3", "-fvisibility=hidden"],
            optional=True,  # where there is no C compiler, Python does the same, more slowly
        )
    ]
)
