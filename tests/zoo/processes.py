"""Python in a process of its own: on another backend, without what this process has loaded, or with what may break it."""

import os
import subprocess
import sys

# a third of the time in which JAX compiles for a processor, whose answers then take longer
QUICK = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true --xla_cpu_use_fusion_emitters=false"
)


def python(*arguments, backend=None, timeout=900):
    """Run a script, or `-c` and code, with arguments; the test fails if it does, with what it said.

    Args:
        arguments: of the interpreter.
        backend: of Keras, this process's if None.
        timeout: in seconds.

    Returns:
        What it wrote to its standard output, without white space at the ends.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    if backend is not None:
        environment |= {"KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu"}
    if backend == "jax":
        environment["XLA_FLAGS"] = QUICK
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=environment, capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout.strip()
