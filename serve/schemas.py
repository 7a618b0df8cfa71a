"""JSON schemas of what the routes take and answer, their query parameters, and fixed examples of bodies, as data.

Examples that depend on a model are its golden rows, see `serve.openapi`.
"""

import re
from typing import Any

import msgspec

from serve import (
    admin,
    boxes,
    continuations,
    embeddings,
    fillings,
    forecasts,
    masks,
    protocol,
    tags,
    transcripts,
)
from serve.tensors import DTYPES, LARGEST_SIZE, MOST_AXES

JSON, BINARY = "application/json", "application/octet-stream"


def object_of(properties: dict[str, Any], *required: str, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required or properties), **more}


def list_of(items: Any, **more: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, **more}


def ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


TEXT: dict[str, Any] = {"type": "string"}
NUMBER: dict[str, Any] = {"type": "number"}
COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
SECONDS: dict[str, Any] = {"type": "number", "exclusiveMinimum": 0}
BOOLEAN: dict[str, Any] = {"type": "boolean"}
ANYTHING: dict[str, Any] = {"type": "object"}
DATATYPE = {"type": "string", "enum": list(DTYPES)}
SHAPE = list_of({"type": "integer", "minimum": -1}, description="-1 where the size is free, as that of a batch")
SENT_SHAPE = list_of({"type": "integer", "minimum": 0, "maximum": LARGEST_SIZE}, maxItems=MOST_AXES)
PORT = object_of({"name": TEXT, "datatype": DATATYPE, "shape": SHAPE})
DATA = list_of({}, description="values, flat in row order or as nested lists; null where one is missing")
SIZE = {**COUNT, "description": "bytes of this tensor after the JSON"}
IMAGE = {"type": "string", "contentMediaType": "image/png"}
SIMILARITY = {"type": "number", "minimum": -1, "maximum": 1, "description": "cosine of the two embeddings"}

ENDS = ("stop", "length", "end")
WRITING = {
    name: {
        "type": "integer" if parameter.whole else "number",
        "exclusiveMinimum" if parameter.above else "minimum": parameter.least,
        "maximum": parameter.most,
        "description": parameter.help,
    }
    for name, parameter in continuations.PARAMETERS.items()
}
STOPS = {
    "anyOf": [TEXT, list_of(TEXT, maxItems=continuations.MOST_STOPS)],
    "description": "texts before which the answer ends",
}

SCHEMAS: dict[str, Any] = {
    "Error": object_of({"error": object_of({"code": TEXT, "message": TEXT})}),
    "ErrorText": object_of({"error": TEXT, "code": TEXT}),
    "Server": object_of({"name": TEXT, "version": TEXT, "extensions": list_of(TEXT)}),
    "Live": object_of({"live": BOOLEAN}),
    "Ready": object_of({"ready": BOOLEAN}),
    "ModelReady": object_of({"name": TEXT, "version": TEXT, "ready": BOOLEAN}),
    "ModelMetadata": object_of(
        {"name": TEXT, "versions": list_of(TEXT), "platform": TEXT, "inputs": list_of(PORT), "outputs": list_of(PORT)}
    ),
    "ModelConfiguration": object_of({"name": TEXT, "platform": TEXT, "max_batch_size": COUNT}),
    "InferRequest": object_of(
        {
            "id": {**TEXT, "description": "comes back in the answer"},
            "inputs": list_of(
                object_of(
                    {
                        "name": TEXT,
                        "datatype": DATATYPE,
                        "shape": SENT_SHAPE,
                        "data": DATA,
                        "parameters": object_of({"binary_data_size": SIZE}, required=[]),
                    },
                    "name", "datatype", "shape",
                ),
                minItems=1,
            ),
            "outputs": list_of(
                object_of(
                    {
                        "name": TEXT,
                        "parameters": object_of(
                            {
                                "binary_data": {**BOOLEAN, "description": "send this output as raw bytes"},
                                "classification": {
                                    "type": "integer",
                                    "minimum": 1,
                                    "description": 'send so many of the highest values as "value:index:label"',
                                },
                            },
                            required=[],
                        ),
                    },
                    "name",
                ),
                description="outputs wanted; every one if left out",
            ),
            "parameters": object_of(
                {"binary_data_output": {**BOOLEAN, "description": "send every output as raw bytes"}}, required=[]
            ),
        },
        "inputs",
    ),
    "InferAnswer": object_of(
        {
            "model_name": TEXT,
            "model_version": TEXT,
            "id": TEXT,
            "outputs": list_of(
                object_of(
                    {
                        "name": TEXT,
                        "datatype": DATATYPE,
                        "shape": SENT_SHAPE,
                        "data": DATA,
                        "parameters": object_of({"binary_data_size": SIZE}),
                    },
                    "name", "datatype", "shape",
                )
            ),
            "parameters": object_of({"notes": {**TEXT, "description": "such as texts that were cut"}}, required=[]),
        },
        "model_name", "model_version", "outputs",
    ),
    "GenerateRequest": object_of(
        {
            "id": TEXT,
            "text_input": {**TEXT, "minLength": 1, "description": "what is to be continued"},
            "parameters": object_of(
                {**WRITING, "stop": STOPS, "stream": {**BOOLEAN, "description": "said by the path; ignored here"}},
                required=[],
            ),
        },
        "text_input",
        description="parameters may stand beside the text too",
    ),
    "GenerateAnswer": object_of(
        {
            "model_name": TEXT,
            "model_version": TEXT,
            "id": TEXT,
            "text_output": TEXT,
            "finish_reason": {"enum": list(ENDS), "description": "a text of stop, as long as may be, or the model's own end"},
            "tokens": COUNT,
            "notes": list_of(TEXT),
        },
        "model_name", "model_version", "text_output",
    ),
    "CompletionRequest": object_of(
        {
            "model": TEXT,
            "prompt": {"anyOf": [TEXT, list_of(TEXT, minItems=1)]},
            "stream": {**BOOLEAN, "description": "answer in events"},
            **{name: schema for name, schema in WRITING.items() if name in ("max_tokens", "temperature", "top_p", "seed")},
            "stop": STOPS,
        },
        "model", "prompt",
    ),
    "CompletionAnswer": object_of(
        {
            "id": TEXT,
            "object": TEXT,
            "created": COUNT,
            "model": TEXT,
            "model_version": TEXT,
            "choices": list_of(
                object_of(
                    {"text": TEXT, "index": COUNT, "logprobs": {}, "finish_reason": {"enum": ["stop", "length", None]}}
                )
            ),
            "usage": object_of({"completion_tokens": COUNT}),
        },
        "id", "object", "created", "model", "choices",
    ),
    "Index": list_of(
        object_of({"name": TEXT, "version": TEXT, "state": {"enum": ["READY", "UNAVAILABLE"]}, "reason": TEXT}, "name", "state")
    ),
    "IndexFilter": object_of({"ready": {**BOOLEAN, "description": "list only what can answer"}}, required=[]),
    "Change": object_of(
        {"parameters": object_of({"version": {**TEXT, "description": "one version; all if left out"}}, required=[])},
        required=[],
    ),
    "PredictV1": {
        **object_of(
            {
                "signature_name": {"enum": [protocol.SIGNATURE, ""]},
                "instances": list_of({}, minItems=1, description="rows; each an object by input name if there are several"),
                "inputs": {"description": "columns; an object by input name if there are several"},
            },
            required=[],
        ),
        "oneOf": [{"required": ["instances"]}, {"required": ["inputs"]}],
    },
    "PredictV1Answer": object_of({"predictions": list_of({}), "outputs": {}}, required=[]),
    "ModelsV1": object_of({"models": list_of(TEXT)}),
    "StatusV1": object_of(
        {
            "name": TEXT,
            "ready": BOOLEAN,
            "model_version_status": list_of(
                object_of(
                    {
                        "version": TEXT,
                        "state": {"enum": ["AVAILABLE", "END"]},
                        "status": object_of({"error_code": TEXT, "error_message": TEXT}),
                    }
                )
            ),
        }
    ),
    "MetadataV1": object_of({"model_spec": ANYTHING, "metadata": ANYTHING}),
    "Rows": {
        "oneOf": [{"type": "object"}, list_of({"type": "object"}, minItems=1)],
        "description": "one row as an object by column or input name, or a list of rows",
    },
    "Prediction": object_of(
        {
            "label": TEXT,
            "probability": NUMBER,
            "top": list_of(object_of({"label": TEXT, "probability": NUMBER})),
            "set": list_of(TEXT, description="labels that hold the truth as often as the model was exported to promise"),
            "value": NUMBER,
            "low": NUMBER,
            "high": NUMBER,
            "target": TEXT,
            "shares": list_of(
                object_of({"label": TEXT, "share": NUMBER, "colour": TEXT}),
                description="of a segmentation: how much of the picture each label covers, largest first",
            ),
            "mask": {**TEXT, "description": "data URL of a PNG whose pixels are the indices of the labels"},
            "runs": list_of(list_of(COUNT), description="the mask as [index of the label, length], row by row"),
            "height": COUNT,
            "width": COUNT,
            "boxes": list_of(
                object_of({"label": TEXT, "score": NUMBER, "box": list_of(NUMBER), "colour": TEXT}),
                description="of a detection: left, top, right, bottom in pixels of a picture of this height and width",
            ),
            "embedding": {
                "anyOf": [list_of(NUMBER), TEXT],
                "description": "unit vector; as base64 the same in little-endian float32",
            },
            "length": COUNT,
            "text": {**TEXT, "description": "what is said in a recording, or what follows a text"},
            "image": {**TEXT, "description": "data URL of a PNG that was painted of a text"},
            "tokens": {**COUNT, "description": "that were written, of a picture its codes"},
            "finish_reason": {"enum": list(ENDS), "description": "why a text ended"},
            "forecast": {"description": "the next values, in a list or by the name of their step"},
            "confidence": {**NUMBER, "description": "of a text: that of its least sure word"},
            "words": list_of(
                object_of({"word": TEXT, "start": NUMBER, "end": NUMBER, "confidence": NUMBER}),
                description="of a recording: seconds from its beginning, and the probability of a word's least sure symbol",
            ),
        },
        required=[],
    ),
    "Predictions": object_of(
        {"model": TEXT, "version": TEXT, "predictions": list_of(ref("Prediction")), "notes": list_of(TEXT)}
    ),
    "Verdict": object_of(
        {
            "model": TEXT,
            "version": TEXT,
            "similarity": SIMILARITY,
            "threshold": {"type": ["number", "null"]},
            "same": {"type": ["boolean", "null"], "description": "whether the similarity is above the threshold"},
            "notes": list_of(TEXT),
        }
    ),
    "Matches": object_of(
        {
            "model": TEXT,
            "version": TEXT,
            "threshold": {"type": ["number", "null"]},
            "matches": list_of(
                list_of(object_of({"name": TEXT, "similarity": SIMILARITY, "same": {"type": ["boolean", "null"]}})),
                description="of each row, the most similar first",
            ),
            "notes": list_of(TEXT),
        }
    ),
    "Enrolled": object_of(
        {"model": TEXT, "version": TEXT, "name": TEXT, "embeddings": COUNT, "added": COUNT, "notes": list_of(TEXT)}
    ),
    "Names": object_of(
        {"model": TEXT, "version": TEXT, "names": list_of(object_of({"name": TEXT, "embeddings": COUNT}))}
    ),
    "Explanation": object_of({"model": TEXT, "version": TEXT, "notes": list_of(TEXT)}),
    "Job": object_of(
        {
            "id": TEXT,
            "kind": TEXT,
            "model": TEXT,
            "version": TEXT,
            "state": TEXT,
            "rows": COUNT,
            "done": COUNT,
            "progress": {"type": "number", "minimum": 0, "maximum": 1},
            "predictions": list_of(ref("Prediction")),
            "explanations": list_of(ANYTHING),
        },
        "id", "kind", "model", "version", "state", "rows", "done",
    ),
    "Traffic": {"type": "object", "description": "rules, counts and tests of a model"},
    "Health": object_of({"ready": BOOLEAN, "models": COUNT, "refused": COUNT}),
}  # fmt: skip

ROWS = {
    JSON: ref("Rows"),
    "text/csv": {**TEXT, "description": "a header line with the columns' names, then one line per row"},
    "text/plain": TEXT,
    "image/png": IMAGE,
    "image/jpeg": {**IMAGE, "contentMediaType": "image/jpeg"},
    "audio/wav": {**IMAGE, "contentMediaType": "audio/wav"},
    "audio/flac": {**IMAGE, "contentMediaType": "audio/flac"},
    "multipart/form-data": object_of({"file": list_of(IMAGE)}),
}
EVENTS = continuations.EVENTS.partition(";")[0]
GENERATED = {
    **TEXT,
    "description": "`data:` and an answer's JSON for each piece of the text; the last one says why it ended",
}
WRITTEN = (
    *(
        (name, schema, f"of a model that writes texts{' or transcripts' * (name == 'beams')}: {schema['description']}")
        for name, schema in WRITING.items()
    ),
    ("stop", list_of(TEXT), "of a model that writes texts: where it ends; may be given several times"),
)
PACKED = {"description": "the same JSON, and behind it the raw little-endian bytes of its binary tensors"}
TOP = ("top", {"type": "integer", "minimum": 1, "default": 5}, "labels to give, most probable first")
FORM = (
    "form",
    {
        "enum": [
            *masks.FORMS,
            *boxes.FORMS,
            *embeddings.FORMS,
            *forecasts.FORMS,
            *transcripts.FORMS,
            *tags.FORMS,
            *fillings.FORMS,
        ]
    },
    "how a segmentation's mask comes: png, a data URL and the usual form; runs, run lengths; none, the shares alone; which "
    "boxes of a detection come: sure, the usual form, or all; how an embedding comes: numbers, the usual form, or base64; "
    "how a forecast comes: values, a list, the usual form, or steps, with a name for each; how a transcript comes: words, with their times, the usual form, or text; how labels of words come: spans, marked parts, the "
    "usual form, or words, each with its own; what could stand at a mask comes as tokens",
)
NEAREST = ("top", {"type": "integer", "minimum": 1, "maximum": 100, "default": 5}, "identities to give of each row")
VERSION = ("version", TEXT, "a version of the model; left out, the server chooses")
LABEL = ("label", TEXT, "class to explain; left out, the predicted one")
METHOD = (
    "method",
    {**TEXT, "default": "auto"},
    "way to explain: exact, permutation, kernel, partition, lime, occlusion or rise, and cam for a bundle with "
    "an activation map, at almost no cost; auto takes the one that suits the model",
)
QUALITY = (
    "quality",
    {"type": "boolean", "default": True},
    "measure how far it can be trusted too, in about as much time again",
)
THEME = ("theme", {"enum": ["light", "dark"], "default": "light"}, "page that the picture's colours are for")
WIDTH = (
    "width",
    {"type": "number", "minimum": 4, "maximum": 20, "default": 8.4},
    "of the picture in inches; letters keep their size, so that a narrow one can be read on a phone",
)
LIMIT = (
    "limit",
    {"type": "integer", "minimum": 1, "maximum": admin.MOST_EVENTS, "default": 100},
    "events, newest first",
)
KIND = ("kind", {"enum": ["predict", "explain"], "default": "predict"}, "what to do with each row")

# (what may be sent, what is answered, query parameters) by operation; paths as with no version in them
BODIES: dict[str, tuple[dict[str, Any], dict[str, Any], tuple]] = {
    "GET /v2": ({}, {JSON: ref("Server")}, ()),
    "GET /v2/health/live": ({}, {JSON: ref("Live")}, ()),
    "GET /v2/health/ready": ({}, {JSON: ref("Ready")}, ()),
    "GET /v2/models/{model}": ({}, {JSON: ref("ModelMetadata")}, ()),
    "GET /v2/models/{model}/config": ({}, {JSON: ref("ModelConfiguration")}, ()),
    "GET /v2/models/{model}/ready": ({}, {JSON: ref("ModelReady")}, ()),
    "POST /v2/models/{model}/infer": (
        {JSON: ref("InferRequest"), BINARY: PACKED},
        {JSON: ref("InferAnswer"), BINARY: PACKED},
        (),
    ),
    "POST /v2/models/{model}/generate": ({JSON: ref("GenerateRequest")}, {JSON: ref("GenerateAnswer")}, ()),
    "POST /v2/models/{model}/generate_stream": ({JSON: ref("GenerateRequest")}, {EVENTS: GENERATED}, ()),
    "POST /v1/completions": (
        {JSON: ref("CompletionRequest")},
        {JSON: ref("CompletionAnswer"), EVENTS: {**TEXT, "description": "the same in pieces, and at last [DONE]"}},
        (),
    ),
    "POST /v2/repository/index": ({JSON: ref("IndexFilter")}, {JSON: ref("Index")}, ()),
    "POST /v2/repository/models/{model}/load": ({JSON: ref("Change")}, {JSON: ANYTHING}, ()),
    "POST /v2/repository/models/{model}/unload": ({JSON: ref("Change")}, {JSON: ANYTHING}, ()),
    "GET /v1/models": ({}, {JSON: ref("ModelsV1")}, ()),
    "GET /v1/models/{model}": ({}, {JSON: ref("StatusV1")}, ()),
    "GET /v1/models/{model}/metadata": ({}, {JSON: ref("MetadataV1")}, ()),
    "POST /v1/models/{model}:predict": ({JSON: ref("PredictV1")}, {JSON: ref("PredictV1Answer")}, ()),
    "GET /": ({}, {"text/html": TEXT, JSON: object_of({"status": TEXT})}, ()),
    "GET /docs": ({}, {"text/html": TEXT}, ()),
    "GET /openapi.json": ({}, {JSON: ANYTHING}, ()),
    "GET /healthz": ({}, {JSON: ref("Health")}, ()),
    "GET /metrics": ({}, {"text/plain": TEXT}, ()),
    "GET /models": ({}, {JSON: list_of(ANYTHING)}, ()),
    "GET /models/{model}/examples": ({}, {JSON: list_of(ANYTHING)}, (VERSION,)),
    "GET /models/{model}/live": ({}, {JSON: ANYTHING}, (VERSION,)),
    "POST /predict/{model}": (
        ROWS,
        {JSON: ref("Predictions"), "text/csv": TEXT, "image/png": IMAGE},
        (TOP, FORM, *WRITTEN, VERSION),
    ),
    "POST /explain/{model}": (ROWS, {JSON: ref("Explanation")}, (METHOD, LABEL, QUALITY, THEME, WIDTH, VERSION)),
    "POST /verify/{model}": (ROWS, {JSON: ref("Verdict")}, (VERSION,)),
    "POST /search/{model}": (ROWS, {JSON: ref("Matches")}, (NEAREST, VERSION)),
    "GET /admin/gallery/{model}": ({}, {JSON: ref("Names")}, (VERSION,)),
    "PUT /admin/gallery/{model}/{name}": (ROWS, {JSON: ref("Enrolled")}, (VERSION,)),
    "DELETE /admin/gallery/{model}/{name}": ({}, {}, (VERSION,)),
    "POST /jobs/{model}": (ROWS, {JSON: ref("Job")}, (KIND, TOP, FORM, *WRITTEN, METHOD, LABEL, QUALITY, VERSION)),
    "GET /jobs": ({}, {JSON: list_of(ref("Job"))}, ()),
    "GET /jobs/{job}": ({}, {JSON: ref("Job"), "text/csv": TEXT}, ()),
    "DELETE /jobs/{job}": ({}, {}, ()),
    "GET /admin/traffic": ({}, {JSON: list_of(ref("Traffic"))}, ()),
    "GET /admin/history": ({}, {JSON: list_of(ANYTHING)}, (LIMIT,)),
    "GET /admin/history/{model}": ({}, {JSON: list_of(ANYTHING)}, (LIMIT,)),
    "POST /feedback/{model}": ({JSON: {"anyOf": [ref("Outcome"), list_of(ref("Outcome"))]}}, {JSON: {}}, ()),
}
CHANGES: dict[str, type | None] = {
    "PUT /admin/traffic/{model}/pin": admin.Pin,
    "PUT /admin/traffic/{model}/canary": admin.NewCanary,
    "PUT /admin/traffic/{model}/shadow": admin.NewShadow,
    "PUT /admin/traffic/{model}/experiment": admin.NewExperiment,
    "PUT /admin/traffic/{model}/watch": None,
    "POST /admin/traffic/{model}/promote": admin.Which,
    "POST /admin/traffic/{model}/rollback": admin.Which,
}
BODIES |= {
    name: ({JSON: ANYTHING if body is None else ref(body.__name__)}, {JSON: ref("Traffic")}, ())
    for name, body in CHANGES.items()
}
SCHEMAS |= msgspec.json.schema_components(
    [*dict.fromkeys(body for body in CHANGES.values() if body is not None), admin.Outcome],
    ref_template="#/components/schemas/{name}",
)[1]
NO_BODY_NEEDED = re.compile(r"/v2/repository/.*|/admin/.*/(promote|rollback)")
STATUS = {"POST /jobs/{model}": "202", "DELETE /jobs/{job}": "204", "DELETE /admin/gallery/{model}/{name}": "204"}
NOT_READY = ("/ready", "/health/ready")  # answered with 503 and the same body while the answer is no

# a body that may be sent and, where it is the same everywhere, its answer; by operation as above
EXAMPLES: dict[str, tuple[Any, ...]] = {
    "POST /v2/repository/index": ({"ready": True},),
    "POST /v2/repository/models/{model}/load": ({}, {}),
    "POST /v2/repository/models/{model}/unload": ({"parameters": {"version": "1"}}, {}),
    "PUT /admin/traffic/{model}/pin": ({"version": "1"},),
    "PUT /admin/traffic/{model}/canary": ({"version": "2", "weight": 0.1},),
    "PUT /admin/traffic/{model}/shadow": ({"version": "2", "share": 1.0},),
    "PUT /admin/traffic/{model}/experiment": ({"control": "1", "treatment": "2", "metric": "clicked"},),
    "PUT /admin/traffic/{model}/watch": ({"slower": 3},),
    "POST /admin/traffic/{model}/promote": ({"version": "2"},),
    "POST /admin/traffic/{model}/rollback": ({"reason": "wrong labels"},),
    "POST /feedback/{model}": ({"request": "7ffc244e8896", "version": "2", "outcome": 1},),
}
