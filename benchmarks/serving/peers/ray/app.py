"""Ray Serve with batching and the settings its documentation gives for throughput."""

import os
import time

import numpy as np
import onnxruntime
import orjson
import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

MODEL, THREADS = os.environ["PEER_MODEL"], int(os.environ["PEER_THREADS"])


@serve.deployment(
    num_replicas=int(os.environ["PEER_WORKERS"]), max_ongoing_requests=256, ray_actor_options={"num_cpus": 0.5}
)
class Peer:
    def __init__(self, model: str, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.port = self.session.get_inputs()[0]
        self.dtype = np.uint8 if "uint8" in self.port.type else np.float32

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.0)
    async def answer(self, rows: list) -> list:
        found = self.session.run(None, {self.port.name: np.concatenate(rows)})[0]
        return [found[number : number + 1] for number in range(len(rows))]

    async def __call__(self, request: Request) -> Response:
        body = await request.body()
        if request.url.path == "/raw":
            rows = np.frombuffer(body, self.dtype).reshape(-1, *self.port.shape[1:])
            return Response((await self.answer(rows)).tobytes(), media_type="application/octet-stream")
        rows = np.asarray(orjson.loads(body)["data"], self.dtype)
        answer = await self.answer(rows)
        return Response(
            orjson.dumps({"data": answer}, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json"
        )


if __name__ == "__main__":
    ray.init(include_dashboard=False, logging_level="error", log_to_driver=False, num_cpus=os.cpu_count())
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["PEER_PORT"])})
    serve.run(Peer.bind(MODEL, THREADS), route_prefix="/")
    print("ready", flush=True)
    while True:
        time.sleep(1)
