"""LitServe with batching: whatever waits when a worker is free, up to 64 rows; the fast queue between its processes."""

import os

import litserve
import numpy as np
import onnxruntime


class Api(litserve.LitAPI):
    def setup(self, device: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ["PEER_THREADS"])
        self.session = onnxruntime.InferenceSession(
            os.environ["PEER_MODEL"], options, providers=["CPUExecutionProvider"]
        )
        self.port = self.session.get_inputs()[0]
        self.dtype = np.uint8 if "uint8" in self.port.type else np.float32

    def decode_request(self, request: dict) -> np.ndarray:
        return np.asarray(request["data"], self.dtype)

    def batch(self, inputs: list) -> np.ndarray:
        return np.concatenate(inputs)

    def predict(self, rows: np.ndarray) -> np.ndarray:
        return self.session.run(None, {self.port.name: rows})[0]

    def unbatch(self, output: np.ndarray) -> list:
        return list(output)

    def encode_response(self, output: np.ndarray) -> dict:
        return {"data": output.tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(
        Api(max_batch_size=64, batch_timeout=0.0, api_path="/predict"),
        accelerator="cpu",
        devices=1,
        workers_per_device=int(os.environ["PEER_WORKERS"]),
        fast_queue=True,
        timeout=60,
    )
    server.run(
        host="127.0.0.1",
        port=int(os.environ["PEER_PORT"]),
        log_level="error",
        generate_client_file=False,
        access_log=False,
    )
