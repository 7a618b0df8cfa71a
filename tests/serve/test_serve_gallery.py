"""Identities: the gallery as a plain object, and the routes that verify, search and enrol."""

import base64
import json
import stat
import threading

import numpy as np
import pytest
from onnx import helper
from small_bundles import IMAGE, Port, write_bundle, write_image, write_onnx

from serve import embeddings, manifest
from serve.app import create_app
from serve.errors import RequestError
from serve.gallery import FILE, MOST_EACH, Gallery, Of
from serve.guard import Guard
from serve.keys import KeyFile
from serve.manifest import BundleError, Manifest
from serve.store import Store

EMBEDDING = Port("embedding", "FP32", (-1, 4), ("batch", "length"), (-1, 1), "coordinate on the unit sphere")
FACES = Of("faces", "1")
EAST, NORTH, WEST = np.eye(3, dtype=np.float32)[[0, 1, 0]] * [[1], [2], [-3]]


def faces_graph(path):
    """Brightness of each quarter, brought to length 1."""
    weight = np.zeros((4, 4, 4), np.float32)
    for quarter in range(4):
        down, across = divmod(quarter, 2)
        weight[2 * down : 2 * down + 2, 2 * across : 2 * across + 2, quarter] = 1
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=1),
        helper.make_node("Flatten", ["pixels"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["sums"]),
        helper.make_node("LpNormalization", ["sums"], ["embedding"], axis=-1, p=2),
    ]
    write_onnx(path, nodes, {"weight": weight.reshape(16, 4)}, (IMAGE,), (EMBEDDING,))


def person(quarter, other=20):
    """A picture that is bright in one quarter."""
    image = np.full((4, 4, 1), other, np.uint8)
    down, across = divmod(quarter, 2)
    image[2 * down : 2 * down + 2, 2 * across : 2 * across + 2] = 250
    return image


def write_faces(store, version="1", **facts):
    image = np.stack([person(0), person(0, other=30), person(3)])
    sums = np.array([[1000, 80, 80, 80], [1000, 120, 120, 120], [80, 80, 80, 1000]], np.float32)
    facts = {"verification": {"measure": "cosine", "thresholds": {"fp32": 0.9}}, **facts}
    return write_bundle(
        store, "faces", version, faces_graph,
        ({"image": image}, {"embedding": sums / np.linalg.norm(sums, axis=1, keepdims=True)}),
        task="embedding", kind="image", inputs=(IMAGE,), outputs=(EMBEDDING,), labels=(), **facts,
    )  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faces") / "store"
    for version in ("1", "2"):
        write_faces(folder, version)
    write_image(folder)
    return Store(folder, threads=1)


@pytest.fixture
def keys(tmp_path):
    file = KeyFile(tmp_path / "keys.json")
    return {
        name: {"Authorization": f"Bearer {file.make(name, scopes=[name])[1]}"}
        for name in ("admin", "predict", "explain")
    } | {"file": file.path}


@pytest.fixture
def client(store, keys, tmp_path):
    app = create_app(store, guard=Guard(keys=keys["file"]), gallery=Gallery(tmp_path / "state"))
    return app.test_client()


def rows(*images):
    return json.dumps({"image": np.stack(images).tolist()})


def post(client, path, body, key, method="post"):
    headers = {**key, "Content-Type": "application/json"}
    return getattr(client, method)(path, data=body, headers=headers)


# ---- the object


@pytest.mark.parametrize("kept", [True, False], ids=["on disk", "in memory"])
def test_a_search_finds_the_nearest_embedding_of_each_name(tmp_path, kept):
    gallery = Gallery(tmp_path if kept else None)
    assert gallery.search(FACES, [EAST]) == [[]]
    assert gallery.enrol(FACES, "Ann", [EAST]) == 1
    assert gallery.enrol(FACES, " Ann ", [NORTH]) == 2
    assert gallery.enrol(FACES, "Bo", [WEST]) == 1
    found = gallery.search(FACES, [EAST + 0.5 * NORTH, WEST])
    assert [[match.name for match in row] for row in found] == [["Ann", "Bo"], ["Bo", "Ann"]]
    assert found[0][0].similarity == pytest.approx(1 / np.sqrt(2), abs=1e-6)  # (1, 1) with (1, 0)
    assert found[1][0].similarity == 1.0
    assert gallery.search(FACES, [WEST], top=1) == [[("Bo", 1.0)]]
    assert gallery.names(FACES) == {"Ann": 2, "Bo": 1}


def test_versions_models_and_other_bundles_of_a_version_keep_apart(tmp_path):
    gallery = Gallery(tmp_path)
    gallery.enrol(FACES, "Ann", [EAST])
    for other in (Of("faces", "2"), Of("others", "1"), Of("faces", "1", "another digest")):
        assert gallery.search(other, [EAST]) == [[]] and gallery.names(other) == {}
        assert gallery.remove(other, "Ann") == 0


def test_what_is_enrolled_outlives_the_process_and_is_seen_by_others(tmp_path):
    first, second = Gallery(tmp_path), Gallery(tmp_path)
    first.enrol(FACES, "Ann", [EAST])
    assert second.names(FACES) == {"Ann": 1}
    second.enrol(FACES, "Bo", [NORTH])
    assert first.search(FACES, [NORTH], top=1)[0][0].name == "Bo"
    first.close()
    assert Gallery(tmp_path).names(FACES) == {"Ann": 1, "Bo": 1}


def test_the_file_is_the_owners_and_holds_nothing_of_who_was_removed(tmp_path):
    gallery = Gallery(tmp_path)
    vector = np.linspace(0.1, 1, 64, dtype=np.float32)
    gallery.enrol(FACES, "Somebody Particular", [vector])
    unit = (vector / np.linalg.norm(vector.astype(np.float64))).astype("<f4").tobytes()

    def written():
        return b"".join(file.read_bytes() for file in tmp_path.iterdir())

    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600
    assert unit in written() and b"Somebody Particular" in written()
    assert gallery.remove(FACES, "Somebody Particular") == 1
    assert unit not in written() and b"Somebody Particular" not in written()


def test_threads_may_enrol_at_once(tmp_path):
    gallery = Gallery(tmp_path)
    each = [threading.Thread(target=gallery.enrol, args=(FACES, f"name {n}", [EAST])) for n in range(8)]
    for thread in each:
        thread.start()
    for thread in each:
        thread.join()
    assert len(gallery.names(FACES)) == 8


@pytest.mark.parametrize(
    ("name", "vectors", "message"),
    [
        ("", [EAST], "a name has 1 … 128 printable characters"),
        ("a\nb", [EAST], "a name has 1 … 128 printable characters"),
        ("n" * 129, [EAST], "a name has 1 … 128 printable characters"),
        ("Bo", [0 * EAST], "has no direction"),
        ("Bo", [EAST * np.nan], "has no direction"),
        ("Bo", EAST, r"embeddings are \(count, length\), got \(3,\)"),
        ("Bo", [[1.0, 0.0]], "the gallery has embeddings of 3 numbers, got 2"),
        ("Bo", np.tile(EAST, (MOST_EACH + 1, 1)), f"a name may have {MOST_EACH} embeddings"),
    ],
)
def test_what_cannot_be_enrolled_is_refused(tmp_path, name, vectors, message):
    gallery = Gallery(tmp_path)
    gallery.enrol(FACES, "Ann", [EAST])
    with pytest.raises(RequestError, match=message):
        gallery.enrol(FACES, name, vectors)
    assert gallery.names(FACES) == {"Ann": 1}


def test_a_damaged_file_is_an_answer_and_no_crash(tmp_path):
    (tmp_path / FILE).write_bytes(b"no database" * 100)
    with pytest.raises(RequestError, match="the gallery cannot be read") as error:
        Gallery(tmp_path).search(FACES, [EAST])
    assert error.value.status == 503


# ---- the routes


def test_a_pair_is_judged_by_the_models_threshold(client, keys):
    same = post(client, "/verify/faces", rows(person(1), person(1, other=30)), keys["predict"]).json
    assert same["same"] is True and same["threshold"] == 0.9 and same["similarity"] > 0.98
    other = post(client, "/verify/faces", rows(person(1), person(2)), keys["predict"]).json
    assert other["same"] is False and other["similarity"] < 0.3
    for count in (1, 3):
        refused = post(client, "/verify/faces", rows(*[person(0)] * count), keys["predict"])
        assert refused.status_code == 422 and f"a pair takes 2 rows, got {count}" in refused.json["error"]["message"]


def test_who_is_enrolled_is_found_and_can_be_forgotten(client, keys):
    nobody = post(client, "/search/faces", rows(person(0)), keys["predict"]).json
    assert nobody["matches"] == [[]] and nobody["notes"] == ["nobody is enrolled for version 2 of 'faces'"]
    for name, quarter in (("Ann", 0), ("Bo Ek", 3)):
        told = post(client, f"/admin/gallery/faces/{name}", rows(person(quarter)), keys["admin"], "put").json
        assert told["embeddings"] == told["added"] == 1 and told["version"] == "2"
    found = post(client, "/search/faces?top=1", rows(person(3, other=25), person(1)), keys["predict"]).json
    assert [(row[0]["name"], row[0]["same"]) for row in found["matches"]] == [("Bo Ek", True), ("Ann", False)]
    assert post(client, "/search/faces?version=1", rows(person(0)), keys["predict"]).json["matches"] == [[]]
    assert client.get("/admin/gallery/faces", headers=keys["admin"]).json["names"] == [
        {"name": "Ann", "embeddings": 1},
        {"name": "Bo Ek", "embeddings": 1},
    ]
    assert client.delete("/admin/gallery/faces/Bo Ek", headers=keys["admin"]).status_code == 204
    gone = client.delete("/admin/gallery/faces/Bo Ek", headers=keys["admin"])
    assert gone.status_code == 404 and "nobody is enrolled as 'Bo Ek'" in gone.json["error"]["message"]


@pytest.mark.parametrize(("method", "path"), [("put", "/Ann"), ("delete", "/Ann"), ("get", "")])
def test_only_an_admin_key_reaches_the_gallery(client, keys, method, path):
    for key, status in (({}, 401), (keys["predict"], 403), (keys["explain"], 403)):
        body = {"data": rows(person(0))} if method == "put" else {}
        headers = {**key, "Content-Type": "application/json"}
        answer = getattr(client, method)(f"/admin/gallery/faces{path}", headers=headers, **body)
        assert answer.status_code == status
    assert post(client, "/search/faces", rows(person(0)), {}).status_code == 401
    assert post(client, "/verify/faces", rows(person(0), person(0)), keys["explain"]).status_code == 403


def test_without_keys_nobody_can_be_enrolled(store):
    client = create_app(store).test_client()
    assert post(client, "/admin/gallery/faces/Ann", rows(person(0)), {}, "put").status_code == 403
    assert post(client, "/verify/faces", rows(person(0), person(0)), {}).json["same"] is True


def test_a_model_of_another_task_is_refused(client, keys):
    answer = post(client, "/search/sides", rows(person(0)), keys["predict"])
    assert answer.status_code == 409
    assert answer.json["error"]["message"].startswith("'sides' gives no embeddings, its task is image-classification")


def test_predictions_are_embeddings_as_numbers_base64_and_csv(client, keys):
    numbers = post(client, "/predict/faces", rows(person(2)), keys["predict"]).json["predictions"][0]
    assert numbers["length"] == 4 and np.linalg.norm(numbers["embedding"]) == pytest.approx(1, abs=1e-6)
    packed = post(client, "/predict/faces?form=base64", rows(person(2)), keys["predict"]).json["predictions"][0]
    assert np.frombuffer(base64.b64decode(packed["embedding"]), "<f4").tolist() == numbers["embedding"]
    headers = {**keys["predict"], "Accept": "text/csv"}
    lines = post(client, "/predict/faces", rows(person(2)), headers).text.splitlines()
    assert lines[0] == "embedding_0,embedding_1,embedding_2,embedding_3"
    assert list(map(float, lines[1].split(","))) == numbers["embedding"]


def test_of_an_embedding_a_pair_is_explained(store, keys):
    app = create_app(store, guard=Guard(keys=keys["file"]), explain_target="fake_explainers:echo")
    client = app.test_client()
    told = post(client, "/explain/faces", rows(person(0), person(2)), keys["explain"]).json
    assert told["version"] == "2" and told["shapes"] == {"left": [1, 4, 4, 1], "right": [1, 4, 4, 1]}
    for count in (1, 3):
        refused = post(client, "/explain/faces", rows(*[person(0)] * count), keys["explain"])
        assert f"how alike two rows are; send two, got {count}" in refused.json["error"]["message"]
    job = post(create_app(store).test_client(), "/jobs/faces?kind=explain", rows(person(0)), {})
    assert job.status_code == 422 and "pairs are explained; send them to /explain" in job.json["error"]["message"]
    app.extensions["explainer"].close()


def test_the_routes_are_documented(client):
    paths = client.get("/openapi.json").json["paths"]
    assert "schema" in paths["/verify/{model}"]["post"]["responses"]["200"]["content"]["application/json"]
    enrol = paths["/admin/gallery/{model}/{name}"]["put"]
    assert enrol["security"] == [{"key": []}] and "multipart/form-data" in enrol["requestBody"]["content"]
    assert set(paths["/admin/gallery/{model}/{name}"]["delete"]["responses"]) == {"204", "default"}


# ---- the bundle


def test_a_bundle_without_thresholds_gives_a_similarity_and_no_verdict(tmp_path):
    write_faces(tmp_path / "store", verification={})
    found = Store(tmp_path / "store", threads=1).get("faces").manifest
    told = embeddings.compared(np.stack([EAST, NORTH]), found)
    assert told == {"similarity": 0.0, "threshold": None, "same": None}


@pytest.mark.parametrize("wrong", [{"measure": "cosine"}, {"thresholds": {"fp32": "much"}}, {"thresholds": [0.5]}])
def test_a_manifest_with_thresholds_that_are_none_is_refused(tmp_path, wrong):
    folder = write_faces(tmp_path / "store")
    raw = json.loads((folder / manifest.MANIFEST).read_text()) | {"verification": wrong}
    with pytest.raises(BundleError, match="verification has no thresholds, or one that is no number"):
        Manifest.from_json(json.dumps(raw))
