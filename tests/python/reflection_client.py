"""A gRPC client that knows nothing of our files: descriptors come by reflection.

    pip install grpcio grpcio-reflection
    python reflection_client.py WORKER_HOST:PORT REGISTRY_HOST:PORT
"""

import sys

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)


class Service:
    """Calls methods of a service by name."""

    def __init__(self, address, name):
        self.channel = grpc.insecure_channel(address)
        self.database = ProtoReflectionDescriptorDatabase(self.channel)
        self.pool = DescriptorPool(self.database)
        self.descriptor = self.pool.FindServiceByName(name)

    def names(self):
        return list(self.database.get_services())

    def message(self, name):
        descriptor = self.pool.FindMessageTypeByName(name)
        return message_factory.GetMessageClass(descriptor)

    def call(self, method_name, **fields):
        method = self.descriptor.methods_by_name[method_name]
        request = message_factory.GetMessageClass(method.input_type)(**fields)
        answer = message_factory.GetMessageClass(method.output_type)
        kind = self.channel.unary_stream if method.server_streaming else self.channel.unary_unary
        path = f"/{self.descriptor.full_name}/{method_name}"
        call = kind(
            path,
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        return call(request, timeout=60)


def check_worker(address):
    worker = Service(address, "steering.v1.ModelWorkerService")
    names = worker.names()
    assert "steering.v1.ModelWorkerService" in names, names
    assert "grpc.health.v1.Health" in names, names
    model = worker.call("GetModel")
    assert model.d_model > 0 and model.n_layers > 0, model
    check_generate(worker, model)
    check_refusal(worker)
    return names, model


def check_generate(worker, model):
    vector = {"name": "zero", "values": [0.0] * model.d_model}
    raw = 1
    add = {"vector": 0, "hook_name": "blocks.0.hook_resid_post", "strength": 1.0, "unit": raw}
    events = list(
        worker.call(
            "Generate",
            prompt={"text": "Write a haiku."},
            vectors=[vector],
            variants=[
                {"name": "baseline"},
                {"name": "steered", "interventions": [{"vector_add": add}]},
            ],
            sampling={"max_new_tokens": 5, "temperature": 0, "ignore_eos": True},
        )
    )
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[0] == "started", kinds
    assert kinds.count("token") == 10 and kinds.count("finished") == 2, kinds
    said = [[e.token.token_id for e in events if e.HasField("token") and e.token.variant == v] for v in (0, 1)]
    assert said[0] == said[1], "a zero vector changes nothing"
    report = [e.finished for e in events if e.HasField("finished") and e.finished.variant == 1]
    assert report[0].interventions[0].positions_changed == 0, report


def check_refusal(worker):
    try:
        list(worker.call("Generate", prompt={"text": ""}))
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error
        assert "prompt.text" in error.details(), error
    else:
        raise AssertionError("an empty prompt was accepted")


def check_registry(address):
    registry = Service(address, "steering.v1.FeatureRegistryService")
    names = registry.names()
    assert "steering.v1.FeatureRegistryService" in names, names
    return names, list(registry.call("ListSaes").saes)


def main(worker_address, registry_address):
    names, model = check_worker(worker_address)
    print("worker:", ", ".join(names))
    print(f"model: {model.model_id} ({model.family}, {model.d_model} wide)")
    names, saes = check_registry(registry_address)
    print("registry:", ", ".join(names))
    print("SAEs:", [sae.sae_id for sae in saes])
    print("ok")


if __name__ == "__main__":
    main(*sys.argv[1:])
