#!/usr/bin/env python3
"""A stranger's client: drives both services with grpcio and server reflection.

No generated file of ours is used: message types come from the servers.

    pip install grpcio grpcio-reflection
    python reflection_client.py WORKER_ADDRESS REGISTRY_ADDRESS FIXTURE_FOLDER
"""
import json, sys
import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase


class Stranger:
    """Calls methods by name; requests are dicts, answers are messages."""

    def __init__(self, address):
        self.channel = grpc.insecure_channel(address)
        self.database = ProtoReflectionDescriptorDatabase(self.channel)
        self.pool = DescriptorPool(self.database)

    def call(self, method, requests, **fields):
        service, name = method.split("/")
        method_descriptor = self.pool.FindServiceByName(service).FindMethodByName(name)
        request_type = GetMessageClass(method_descriptor.input_type)
        kind = ("stream" if method_descriptor.client_streaming else "unary") + "_" + (
            "stream" if method_descriptor.server_streaming else "unary")
        stub = getattr(self.channel, kind)(
            f"/{method}", request_serializer=request_type.SerializeToString,
            response_deserializer=GetMessageClass(method_descriptor.output_type).FromString)
        if method_descriptor.client_streaming:
            return stub(iter([request_type(**r) for r in requests]), timeout=60)
        return stub(request_type(**fields), timeout=60)


def main(worker_address, registry_address, fixture):
    cases = json.load(open(f"{fixture}/cases.json"))
    worker, registry = Stranger(worker_address), Stranger(registry_address)
    for stranger, service in ((worker, "ModelWorkerService"), (registry, "FeatureRegistryService")):
        services = stranger.database.get_services()
        assert f"steering.v1.{service}" in services and "grpc.health.v1.Health" in services, services
        health = stranger.call("grpc.health.v1.Health/Check", None, service=f"steering.v1.{service}")
        assert health.status == 1, health

    w, r = "steering.v1.ModelWorkerService", "steering.v1.FeatureRegistryService"
    model = worker.call(f"{w}/GetModel", None)
    assert model.d_model == cases["d_model"] and model.n_layers == cases["n_layers"], model

    hook = cases["sae"]["hook"]
    options = {"sae_id": "stranger", "hook_name": hook, "model_id": model.model_id}
    events = list(registry.call(f"{r}/ImportSae", None, path=f"{fixture}/{cases['sae']['path']}", options=options))
    assert events[-1].sae.d_in == cases["d_model"], events[-1]
    labels = open(f"{fixture}/labels.json", "rb").read()
    imported = registry.call(f"{r}/ImportFeatureLabels", [{"header": {"sae_id": "stranger"}}, {"chunk": labels}])
    assert imported.label_count == len(json.loads(labels)), imported

    case = next(c for c in cases["cases"] if c["name"] == "clamp")
    edit = case["interventions"][0]
    features = registry.call(f"{r}/GetFeatures", None, features=[{"sae_id": "stranger", "label": edit["labels"][0]}])
    intervention = {"feature": {"feature": 0, "set": edit["value"]}}
    stream = worker.call(
        f"{w}/Generate", None, prompt={"text": case["prompt"]["text"]},
        # The registry's message goes to the worker byte for byte, though the
        # two come from different descriptor pools.
        features=[GetMessageClass(worker.pool.FindMessageTypeByName("steering.v1.SaeFeature")).FromString(
            feature.SerializeToString()) for feature in features.features],
        variants=[{"name": "baseline"}, {"name": "steered", "interventions": [intervention]}],
        sampling={"max_new_tokens": 16, "temperature": 0.0, "repetition_penalty": 1.0})
    tokens, reports = {0: [], 1: []}, {}
    for event in stream:
        kind = event.WhichOneof("event")
        if kind == "started":
            assert list(event.started.prompt_token_ids) == case["prompt_token_ids"]
        elif kind == "token":
            tokens[event.token.variant].append(event.token.token_id)
        else:
            reports[event.finished.variant] = event.finished
    assert tokens[1] == case["token_ids"], (tokens[1], case["token_ids"])
    assert tokens[0] == case["baseline_token_ids"], tokens[0]
    assert reports[1].interventions[0].positions_touched == len(case["prompt_token_ids"]) + 15, reports[1]

    try:
        list(worker.call(f"{w}/Generate", None, prompt={"text": ""}))
        raise AssertionError("an empty prompt was accepted")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT and "prompt.text" in error.details(), error
    registry.call(f"{r}/DeleteSae", None, sae_id="stranger")
    print("reflection client: all assertions held")


if __name__ == "__main__":
    main(*sys.argv[1:])
