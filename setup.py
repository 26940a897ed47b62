"""Package map: three root folders install inside ``edgeprune``, so the wheel has one top-level name."""

from pathlib import Path

from setuptools import setup

ROOM = {"edgeprune.models": "models", "edgeprune.devices": "devices", "edgeprune.pipelines": "pipelines"}

# A board (Linux on Arm) gets the light core; TensorFlow there is asked for with the extra "host".
HOST = '(platform_machine != "aarch64" and platform_machine != "armv7l")'
BOARD = '(platform_machine == "aarch64" or platform_machine == "armv7l")'
TENSORFLOW = [
    "tensorflow>=2.21,<2.22",
    "tf_keras>=2.21,<2.22",
    "keras>=3.12,<3.16",
    "tensorflow-model-optimization>=0.8.1,<0.9",
]

SEARCH = ["optuna>=5.0,<6", "cmaes>=0.12,<1"]
DATABASES = ["psycopg[binary]>=3.2,<4", "pymysql>=1.1,<2"]

setup(
    name="edgeprune",
    version="0.1.0",
    description="A Keras model and a target in; the smallest, fastest int8 TFLite model that keeps the accuracy out",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10,<3.14",
    packages=["edgeprune", "edgeprune.keras", "edgeprune.keras.gates", "edgeprune.samplers", *ROOM],
    package_dir={"edgeprune": "edgeprune", **ROOM},
    package_data={
        "edgeprune": ["py.typed", "templates/*"],
        "edgeprune.devices": ["_plugin.c", "targets/*.yaml", "accelerators/*.yaml", "latency/*.yaml"],
        "edgeprune.pipelines": ["recipes/*.yaml", "recipes/methods/*.yaml"],
    },
    entry_points={"console_scripts": ["edgeprune = edgeprune.cli:main"]},
    install_requires=[
        "click>=8.1,<9",
        "numpy>=1.26,<3",
        "packaging>=23.2",
        "pydantic>=2.7,<3",
        "PyYAML>=6.0,<7",
        "rich>=13.7,<16",
        "Jinja2>=3.1,<4",
        f"h5py>=3.11,<4; {HOST}",
        f"scikit-learn>=1.5,<2; {HOST}",
        f"pillow>=10,<14; {HOST}",
        f"ai-edge-litert>=2.1.6,<2.4; {HOST}",
        f"flatbuffers>=24.3.25,<26; {HOST}",
        *[f"{requirement}; {HOST}" for requirement in (*TENSORFLOW, *SEARCH)],
    ],
    extras_require={
        "host": [
            *TENSORFLOW,
            *SEARCH,
            "h5py>=3.11,<4",
            "scikit-learn>=1.5,<2",
            "pillow>=10,<14",
            "ai-edge-litert>=2.1.6,<2.4",
            "flatbuffers>=24.3.25,<26",
        ],
        # Never beside TensorFlow's NumPy 2: these bind on Arm boards only.
        "board": [
            f'tflite-runtime==2.14.0; python_version < "3.12" and {BOARD}',
            f'numpy<2; python_version < "3.12" and {BOARD}',
            f'ai-edge-litert>=2.1.6,<2.3; python_version >= "3.12" and {BOARD}',
        ],
        "tfds": ["tensorflow-datasets>=4.9.9,<5"],
        "bench": ["matplotlib>=3.9,<4"],
        "search": SEARCH,
        "postgresql": DATABASES[:1],
        "mysql": DATABASES[1:],
        "dev": [
            "pytest>=8,<10",
            "pytest-timeout>=2.3,<3",
            "pytest-xdist>=3.5,<4",
            "hypothesis>=6.100,<7",
            "ruff==0.17.5",
            "mypy==2.4.1",
            "types-PyYAML",
            *DATABASES,
        ],
    },
)
