"""
Packaging. What is tested and checked with is in the extra ``dev``.
"""

from pathlib import Path

from setuptools import setup

setup(
    name="storageproxy",
    use_incremental=True,
    description="Backend.AI Storage Proxy: vfolders by tus.io uploads, ranged downloads and RPC",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="LGPL-3.0-or-later",
    classifiers=[
        "Framework :: Twisted",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: System :: Filesystems",
    ],
    python_requires=">=3.11",
    packages=[
        "storageproxy",
        "storageproxy.api",
        "storageproxy.transfer",
        "backends",
        "backends.cephfs",
        "backends.purestorage",
        "backends.xfs",
        "twisted.plugins",
    ],
    package_data={"storageproxy": ["py.typed"], "backends": ["py.typed"]},
    setup_requires=["incremental"],
    install_requires=[
        "Twisted[tls] >= 24.11",  # the reactor, HTTP, services and plugins
        "klein >= 24.8",  # routes
        "werkzeug >= 3",  # dates and entity tags of HTTP; under Klein anyway
        "attrs >= 23.1",  # data classes
        "cattrs >= 24.1",  # configuration, JSON bodies and token claims to attrs classes
        "PyJWT >= 2.8",  # tokens
        "treq >= 24.9",  # requests to the REST APIs of storage systems
        "pyOpenSSL >= 24",  # certificates of the two ports
        "service-identity >= 23",  # checks the certificates of storage systems
        "incremental >= 24.7",  # the version
        "isal >= 1.6",  # the sums in archives, at the speed of memory
        "zope.interface >= 6",  # interfaces; under Twisted anyway
    ],
    extras_require={
        "dev": [
            "hypothesis >= 6.100",  # tests from properties
            "mypy >= 1.15",  # types
            "mypy-zope >= 1.0.11",  # types of zope interfaces
            "ruff >= 0.9",  # lint
            "towncrier >= 24.8",  # news
            "tuspy >= 1.1",  # a tus client
            "backend.ai-aiotusclient == 0.1.4",  # the uploader of the Backend.AI SDK
            "aiohttp >= 3.10",  # which that one stands on
            "cryptography >= 42",  # certificates for tests
        ],
        # The vendor's clients, by which the simulator of a FlashBlade is proven. They are apart, as
        # the second one takes 800 MB.
        "flashblade": [
            "purity_fb == 1.12.3",  # REST 1.x
            "setuptools",  # has distutils, which that one imports
            "py-pure-client == 1.96.0",  # REST 2.x
        ],
    },
    zip_safe=False,
)
