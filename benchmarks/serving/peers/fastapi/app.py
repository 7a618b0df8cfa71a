"""FastAPI and ONNX Runtime, in two ways.

`/predict` is the documented one: a typed body that is validated, an answer that FastAPI encodes, and a plain function, which
runs in a thread because it computes. `/bare` and `/raw` are as fast as the two go together: nothing is validated, orjson
or plain bytes, and the session is called in the event loop, which answers nobody else in the meantime.
"""

import os

import numpy as np
import onnxruntime
import orjson
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(os.environ["PEER_THREADS"])
session = onnxruntime.InferenceSession(os.environ["PEER_MODEL"], options, providers=["CPUExecutionProvider"])
port = session.get_inputs()[0]
dtype = np.uint8 if "uint8" in port.type else np.float32
app = FastAPI()


@app.get("/health")
async def health() -> Response:
    return Response()


class Rows(BaseModel):
    data: list[list[float]] if dtype == np.float32 else list[list[list[list[int]]]]


class Answers(BaseModel):
    data: list[list[float]]


@app.post("/predict")
def predict(rows: Rows) -> Answers:
    return Answers(data=session.run(None, {port.name: np.asarray(rows.data, dtype)})[0].tolist())


@app.post("/bare")
async def bare(request: Request) -> Response:
    rows = np.asarray(orjson.loads(await request.body())["data"], dtype)
    answer = session.run(None, {port.name: rows})[0]
    return Response(orjson.dumps({"data": answer}, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")


@app.post("/raw")
async def raw(request: Request) -> Response:
    rows = np.frombuffer(await request.body(), dtype).reshape(-1, *port.shape[1:])
    return Response(session.run(None, {port.name: rows})[0].tobytes(), media_type="application/octet-stream")
