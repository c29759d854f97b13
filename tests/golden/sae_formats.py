"""One small SAE per published file format, with what encoding, decoding and clamping must give.

For each format: the files under `sae/`, `expected.json` (what to import and what should come of
it) and, unless it must be refused, `expected.safetensors`: x, f = encode(x), x_hat = decode(f),
`clamped` = x - x_hat + decode(f with one feature set) and `ablated`, the same with the value 0.
"""

import json
import math
import shutil
import zipfile
from collections import OrderedDict

import numpy as np
import torch
from safetensors.torch import save_file
from sae_lens import SAE
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.gated_sae import GatedSAE, GatedSAEConfig
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.sae import SAEMetadata
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig
from sae_lens.saes.transcoder import Transcoder, TranscoderConfig

from common import write_json
from reference import jumprelu_sae

D_IN, D_SAE, N_ROWS = 20, 40, 12
MODEL, HOOK = "google/gemma-2-2b", "blocks.4.hook_resid_post"
MARGIN = 1e-3  # no pre-activation lies nearer to its threshold than this, relative to the row's norm


def draw(seed, unit_decoder=False):
    """Random weights; decoder norms differ unless `unit_decoder`."""
    generator = torch.Generator().manual_seed(seed)
    rand = lambda *shape: torch.randn(*shape, generator=generator)
    W_dec = rand(D_SAE, D_IN)
    W_dec /= W_dec.norm(dim=1, keepdim=True)
    if not unit_decoder:
        W_dec *= 0.5 + torch.rand(D_SAE, 1, generator=generator)
    return {
        "W_enc": (W_dec + 0.1 * rand(D_SAE, D_IN)).T.contiguous(),
        "W_dec": W_dec,
        "b_enc": 0.3 * rand(D_SAE) - 0.2,
        "b_dec": 0.5 * rand(D_IN),
        "threshold": 0.2 + 0.8 * torch.rand(D_SAE, generator=generator),
        "b_gate": 0.3 * rand(D_SAE) - 0.2,
        "b_mag": 0.3 * rand(D_SAE) + 0.3,
        "r_mag": 0.4 * rand(D_SAE),
    }


def activations(seed):
    """Rows of very different norms: the largest is near what a late residual stream shows."""
    generator = torch.Generator().manual_seed(1000 + seed)
    x = torch.randn(N_ROWS, D_IN, generator=generator) + 0.3
    scale = torch.tensor([1.0, 2.0, 0.5, 4.0, 1.0, 8.0, 3.0, 1.0, 30.0, 0.1, 300.0, 1.0])
    return x * scale[:, None]


class Formula:
    """An SAE written out: f = activation((x - b_sub) W_enc + b_enc), x_hat = f W_dec + b_dec."""

    def __init__(self, W_enc, b_enc, W_dec, b_dec, subtract, activation):
        self.W_enc, self.b_enc, self.W_dec, self.b_dec = W_enc, b_enc, W_dec, b_dec
        self.subtract, self.activation = subtract, activation

    def encode(self, x):
        return self.activation((x - self.b_dec * self.subtract) @ self.W_enc + self.b_enc)

    def decode(self, f):
        return f @ self.W_dec + self.b_dec


def jump(threshold):
    return lambda pre: torch.relu(pre) * (pre > threshold)


class Fixture:
    """Writes one format's folder."""

    def __init__(self, root, name, hook=None, model=None, path="sae"):
        self.folder, self.name = root / name, name
        shutil.rmtree(self.folder, ignore_errors=True)
        self.sae = self.folder / path
        (self.sae if "." not in self.sae.name else self.sae.parent).mkdir(parents=True)
        self.meta = {"format": name, "path": path, "d_in": D_IN, "d_sae": D_SAE, "hook_name": hook, "model_name": model}

    def refused(self, why):
        write_json(self.folder / "expected.json", self.meta | {"expectation": "refused", "why": why})

    def ok(self, sae, seed, note=None):
        """Records what `sae` computes, after checking that rounding cannot flip a feature."""
        x = activations(seed)
        f = sae.encode(x)
        x_hat = sae.decode(f)
        jitter = sae.encode(x + MARGIN * 0.1 * x.norm(dim=1, keepdim=True) / math.sqrt(D_IN))
        sae.decode(jitter)  # drops what a normalising SAE remembers of its input
        stable = ((f > 0) == (jitter > 0)).all(0)
        share = (f > 0).float().mean(0)
        wanted = stable & (share > 0.2) & (share < 0.8)
        index = int((wanted.float() * f.sum(0)).argmax())
        assert wanted[index], self.name
        value = round(2.0 * float(f[f > 0].median()), 3)

        def clamp(value):
            changed = sae.encode(x)
            error = x - x_hat
            changed[:, index] = value
            return error + sae.decode(changed)

        tensors = {"x": x, "f": f, "x_hat": x_hat, "clamped": clamp(value), "ablated": clamp(0.0)}
        save_file({k: v.float().contiguous() for k, v in tensors.items()}, self.folder / "expected.safetensors")
        extra = {"note": note} if note else {}
        write_json(self.folder / "expected.json", self.meta | {"expectation": "ok", "feature_index": index, "value": value} | extra)


# -- Gemma Scope ------------------------------------------------------------------------------


def npz_arrays(weights):
    return {k: weights[k].numpy() for k in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")}


def gemma_scope(root):
    weights = draw(1)
    fixture = Fixture(root, "gemma_scope_npz", path="gemma-scope-2b-pt-res/layer_4/width_40/average_l0_7/params.npz")
    np.savez(fixture.sae, **npz_arrays(weights))
    fixture.ok(jumprelu_sae(npz_arrays(weights)), 1, "the hook and the model are not in the file; the layer is in the folder's name")

    weights = draw(2)
    fixture = Fixture(root, "gemma_scope_npz_deflated", path="params.npz")
    np.savez_compressed(fixture.sae, **npz_arrays(weights))
    fixture.ok(jumprelu_sae(npz_arrays(weights)), 2)

    weights = draw(3)
    fixture = Fixture(root, "gemma_scope_npz_fortran", path="params.npz")
    np.savez(fixture.sae, **{k.lower(): np.asfortranarray(v) for k, v in npz_arrays(weights).items()})
    fixture.ok(jumprelu_sae(npz_arrays(weights)), 3, "W_enc and W_dec in Fortran order, names in lower case")

    weights = {k: v.half() for k, v in draw(31).items()}
    fixture = Fixture(root, "gemma_scope_npz_f16", path="params.npz")
    np.savez(fixture.sae, **npz_arrays(weights))
    fixture.ok(jumprelu_sae({k: v.astype(np.float32) for k, v in npz_arrays(weights).items()}), 31, "float16 on disk, float32 arithmetic")


def gemma_scope_2(root):
    weights = draw(4)
    fixture = Fixture(root, "gemma_scope_2", HOOK, "google/gemma-3-270m", path="resid_post/layer_4_width_16k_l0_small")
    config = {
        "hf_hook_point_in": "model.layers.4.output", "hf_hook_point_out": "model.layers.4.output", "width": D_SAE,
        "model_name": "gemma-v3-270m-pt", "architecture": "jump_relu", "l0": 10, "affine_connection": False, "type": "sae",
    }
    write_json(fixture.sae / "config.json", config)
    save_file({k.lower(): v for k, v in weights.items() if k in npz_arrays(weights)}, fixture.sae / "params.safetensors")
    fixture.ok(jumprelu_sae(npz_arrays(weights)), 4, 'config.json has "gemma-v3-270m-pt"; the hub id is google/gemma-3-270m')

    fixture = Fixture(root, "gemma_scope_2_transcoder", path="transcoder/layer_4_width_16k_l0_small_affine")
    write_json(fixture.sae / "config.json", config | {
        "hf_hook_point_in": "model.layers.4.pre_feedforward_layernorm.output",
        "hf_hook_point_out": "model.layers.4.post_feedforward_layernorm.output", "affine_connection": True, "type": "transcoder",
    })
    tensors = {k.lower(): v for k, v in weights.items() if k in npz_arrays(weights)}
    save_file(tensors | {"affine_skip_connection": torch.zeros(D_IN, D_IN)}, fixture.sae / "params.safetensors")
    fixture.refused("a transcoder reads one site and writes another")


# -- SAELens ----------------------------------------------------------------------------------


def saelens_native(root, name, cls, cfg_cls, weights, seed, note=None, refused=None, **options):
    """Saves with SAELens, loads again with SAELens, and records what the loaded SAE computes."""
    fixture = Fixture(root, name, HOOK, MODEL)
    metadata = SAEMetadata(model_name=MODEL, hook_name=HOOK, hook_head_index=None, prepend_bos=True, context_size=128)
    sae = cls(cfg_cls(d_in=D_IN, d_sae=D_SAE, metadata=metadata, **options))
    sae.load_state_dict({k: weights[k] for k in sae.state_dict()})
    sae.save_model(fixture.sae)
    if refused:
        fixture.refused(refused)
    else:
        fixture.ok(SAE.load_from_disk(fixture.sae), seed, note)


def saelens_v6(root):
    standard, jumprelu = (StandardSAE, StandardSAEConfig), (JumpReLUSAE, JumpReLUSAEConfig)
    plain, subtract = {"apply_b_dec_to_input": False}, {"apply_b_dec_to_input": True}
    make = lambda name, kind, seed, **options: saelens_native(root, name, *kind, draw(seed), seed, **options)
    make("saelens_v6_standard", standard, 5, **plain)
    make("saelens_v6_jumprelu", jumprelu, 6, **plain)
    make("saelens_v6_gated", (GatedSAE, GatedSAEConfig), 7, **subtract)
    make("saelens_v6_apply_b_dec", jumprelu, 8, **subtract)
    make("saelens_v6_layer_norm", jumprelu, 9, normalize_activations="layer_norm", **subtract)
    make("saelens_v6_layer_norm_standard", standard, 10, normalize_activations="layer_norm", **plain)
    make("saelens_v6_constant_norm_rescale", jumprelu, 11, normalize_activations="constant_norm_rescale", **plain)
    make("saelens_v6_constant_norm_rescale_b_dec", standard, 12, normalize_activations="constant_norm_rescale", **subtract)
    make("saelens_v6_expected_average", standard, 13, normalize_activations="expected_average_only_in", **plain,
         refused="the scale that activations were divided by is not in the files")
    topk = (TopKSAE, TopKSAEConfig)
    why = "TopK: whether a feature fires depends on all the others"
    make("saelens_v6_topk", topk, 14, k=5, refused=why, **subtract)
    make("saelens_v6_topk_rescale", topk, 15, k=5, rescale_acts_by_decoder_norm=True, refused=why, **subtract)
    saelens_native(
        root, "saelens_v6_transcoder", Transcoder, TranscoderConfig, draw(16), 16, d_out=D_IN,
        refused="a transcoder reads one site and writes another", **plain,
    )


def saelens_batchtopk(root):
    """A BatchTopK SAE trained with decoder-norm rescaling: the checkpoint, and its inference form."""
    weights = draw(17)
    metadata = SAEMetadata(model_name=MODEL, hook_name=HOOK, prepend_bos=True)
    config = BatchTopKTrainingSAEConfig(
        d_in=D_IN, d_sae=D_SAE, k=6, rescale_acts_by_decoder_norm=True, apply_b_dec_to_input=True, metadata=metadata
    )

    def trained():
        sae = BatchTopKTrainingSAE(config)
        state = {k: weights[k].clone() for k in ("W_enc", "W_dec", "b_enc", "b_dec")}
        sae.load_state_dict(state | {"topk_threshold": torch.tensor(0.6, dtype=torch.float64)})
        return sae

    checkpoint = Fixture(root, "saelens_v6_batchtopk_rescale", HOOK, MODEL)
    trained().save_model(checkpoint.sae)
    inference = Fixture(root, "saelens_v6_batchtopk_inference", HOOK, MODEL)
    trained().save_inference_model(inference.sae)
    cfg = inference.sae / "cfg.json"  # SAELens writes its keys in no fixed order
    write_json(cfg, dict(sorted(json.loads(cfg.read_text()).items())))
    sae = SAE.load_from_disk(inference.sae)

    # Written out: f = pre |d| where that exceeds the threshold, and the direction written is d / |d|.
    norms, x = weights["W_dec"].norm(dim=1), activations(17)
    pre = ((x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]) * norms
    f = torch.relu(pre) * (pre > 0.6)
    torch.testing.assert_close(sae.encode(x), f, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(sae.decode(f), (f / norms) @ weights["W_dec"] + weights["b_dec"], rtol=1e-5, atol=1e-4)
    inference.ok(sae, 17, "architecture jumprelu: SAELens folds the decoder norms when it saves for inference")
    checkpoint.ok(
        sae, 17,
        "a training checkpoint (architecture batchtopk, topk_threshold, rescale_acts_by_decoder_norm true). "
        "SAELens does not load it for inference; expected is what its own conversion gives. Refusing it is also right.",
    )
    expected = json.loads((checkpoint.folder / "expected.json").read_text())
    write_json(checkpoint.folder / "expected.json", expected | {"expectation": "ok_or_refused"})


def saelens_old(root):
    """Flat cfg.json from before SAELens 6. apply_b_dec_to_input is not written and means true."""
    config = {
        "model_name": "gpt2-small", "hook_point": "blocks.4.hook_resid_pre", "hook_point_layer": 4, "hook_point_head_index": None,
        "dataset_path": "Skylion007/openwebtext", "context_size": 128, "d_in": D_IN, "d_sae": D_SAE, "expansion_factor": 2,
        "activation_fn_str": "relu", "dtype": "torch.float32", "device": "cuda", "prepend_bos": True, "normalize_activations": None,
        "sae_lens_training_version": None,
    }
    weights = draw(18)
    tensors = {k: weights[k] for k in ("W_enc", "W_dec", "b_enc", "b_dec")}
    fixture = Fixture(root, "saelens_old", "blocks.4.hook_resid_pre", "gpt2-small")
    write_json(fixture.sae / "cfg.json", config)
    save_file(tensors, fixture.sae / "sae_weights.safetensors")
    fixture.ok(SAE.load_from_disk(fixture.sae), 18)

    fixture = Fixture(root, "saelens_old_scaling_factor", "blocks.4.hook_resid_pre", "gpt2-small")
    write_json(fixture.sae / "cfg.json", config)
    save_file(tensors | {"scaling_factor": torch.ones(D_SAE)}, fixture.sae / "sae_weights.safetensors")
    fixture.ok(SAE.load_from_disk(fixture.sae), 18, "a scaling_factor of all ones means nothing and is dropped")

    fixture = Fixture(root, "saelens_old_topk", "blocks.4.hook_resid_pre", "gpt2-small")
    write_json(fixture.sae / "cfg.json", config | {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 5}})
    save_file(tensors, fixture.sae / "sae_weights.safetensors")
    fixture.refused("TopK: whether a feature fires depends on all the others")


# -- dictionary_learning ----------------------------------------------------------------------


def dictionary_config(dict_class, **more):
    return {
        "trainer": {
            "trainer_class": "StandardTrainer", "dict_class": dict_class, "lr": 3e-4, "steps": 1000, "seed": 0,
            "activation_dim": D_IN, "dict_size": D_SAE, "device": "cuda:0", "layer": 4, "lm_name": MODEL,
            "submodule_name": "resid_post_layer_4", "wandb_name": dict_class,
        } | more,
        "buffer": {
            "d_submodule": D_IN, "io": "out", "n_ctxs": 244, "ctx_len": 1024, "refresh_batch_size": 32,
            "out_batch_size": 2048, "device": "cuda:0",
        },
    }


def dictionary_learning(root):
    def write(name, dict_class, state, **more):
        fixture = Fixture(root, f"dictionary_learning_{name}", HOOK, MODEL)
        write_json(fixture.sae / "config.json", dictionary_config(dict_class, **more))
        torch.save(OrderedDict(state), fixture.sae / "ae.pt")
        return fixture

    w = draw(20, unit_decoder=True)
    linear = {"encoder.weight": w["W_enc"].T.contiguous(), "encoder.bias": w["b_enc"], "decoder.weight": w["W_dec"].T.contiguous()}
    formula = lambda activation, subtract=True: Formula(w["W_enc"], w["b_enc"], w["W_dec"], w["b_dec"], subtract, activation)
    write("relu", "AutoEncoder", {"bias": w["b_dec"]} | linear).ok(formula(torch.relu), 20)

    k, threshold = torch.tensor(6, dtype=torch.int32), torch.tensor(0.7)
    state = {"b_dec": w["b_dec"], "k": k, "threshold": threshold} | linear
    write("batchtopk", "BatchTopKSAE", state, k=6).ok(formula(jump(threshold)), 20, "a scalar threshold for all features")
    write("batchtopk_no_threshold", "BatchTopKSAE", state | {"threshold": torch.tensor(-1.0)}, k=6).refused(
        "BatchTopK with threshold -1: whether a feature fires depends on the rest of the batch"
    )
    raw = {name: w[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    groups = {"k": k, "threshold": threshold, "group_sizes": torch.tensor([10, 30])}
    write("matryoshka", "MatryoshkaBatchTopKSAE", raw | groups, k=6, group_sizes=[10, 30]).ok(formula(jump(threshold)), 20)
    # As in the library, W_enc is a transposed view: its strides in the file are not those of its shape.
    jumprelu = raw | {"W_enc": w["W_enc"].T.contiguous().T, "threshold": w["threshold"]}
    write("jumprelu", "JumpReluAutoEncoder", jumprelu).ok(formula(jump(w["threshold"]), subtract=False), 20, "b_dec is not subtracted; W_enc is stored as a transposed view")
    write("topk", "AutoEncoderTopK", {"b_dec": w["b_dec"], "k": k} | linear, k=6).refused("TopK: whether a feature fires depends on all the others")


def build(root):
    gemma_scope(root)
    gemma_scope_2(root)
    saelens_v6(root)
    saelens_batchtopk(root)
    saelens_old(root)
    dictionary_learning(root)
    check_archives(root)
    print(f"sae_formats: {len(list(root.iterdir()))} formats", flush=True)


def check_archives(root):
    """The archives are what their names say."""
    deflated = zipfile.ZipFile(root / "gemma_scope_npz_deflated" / "params.npz").infolist()
    assert all(entry.compress_type == zipfile.ZIP_DEFLATED for entry in deflated)
    assert np.load(root / "gemma_scope_npz_fortran" / "params.npz")["w_enc"].flags.f_contiguous
