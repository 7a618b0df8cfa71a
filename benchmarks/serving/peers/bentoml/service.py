"""BentoML with adaptive batching, one worker process per core."""

import os

import bentoml
import numpy as np
import onnxruntime


@bentoml.service(
    workers=int(os.environ.get("PEER_WORKERS", "1")),
    traffic={"timeout": 60},
    logging={"access": {"enabled": False}},
    metrics={"enabled": False},
)
class Peer:
    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ["PEER_THREADS"])
        self.session = onnxruntime.InferenceSession(
            os.environ["PEER_MODEL"], options, providers=["CPUExecutionProvider"]
        )
        self.port = self.session.get_inputs()[0]
        self.dtype = np.uint8 if "uint8" in self.port.type else np.float32

    @bentoml.api(batchable=True, max_batch_size=64, max_latency_ms=60_000)
    def predict(self, data: np.ndarray) -> np.ndarray:
        return self.session.run(None, {self.port.name: data.astype(self.dtype)})[0]
