"""Dense decoder-only language models of transformers."""

from __future__ import annotations

from tests.zoo.case import Case, Expected
from tests.zoo.hf_common import HEADS, VOCAB, WIDTH, hf_case, special_tokens, two_norm_stream

LAYERS = 3


def _block_reads(layer: str, norms: tuple[str, ...], last: str) -> tuple[str, ...]:
    reads = [f"{layer}.{index}.{norm}" for index in range(LAYERS) for norm in norms]
    return (*reads, last)


def _llama_config(**changes: object) -> dict[str, object]:
    """The config fields that Llama and its relatives share."""
    return {
        "vocab_size": VOCAB,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        **special_tokens(),
        **changes,
    }


GPT2 = hf_case(
    "gpt2",
    "GPT2Config",
    "GPT2LMHeadModel",
    {
        "vocab_size": VOCAB,
        "n_positions": 64,
        "n_embd": WIDTH,
        "n_layer": LAYERS,
        "n_head": HEADS,
        **special_tokens(),
    },
    (
        Expected(
            writes=2 * LAYERS,
            reads=2 * LAYERS + 1,
            read_modules=_block_reads("transformer.h", ("ln_1", "ln_2"), "transformer.ln_f"),
        ),
    ),
    "GPT2Block adds attention as `attn_output + residual` and the MLP as `residual + mlp`, behind ln_1 and "
    "ln_2; GPT2Model ends in ln_f. The sum of token and position embedding is the root, not a write.",
)

GPT_NEO = hf_case(
    "gpt_neo",
    "GPTNeoConfig",
    "GPTNeoForCausalLM",
    {
        "vocab_size": VOCAB,
        "max_position_embeddings": 64,
        "hidden_size": WIDTH,
        "num_layers": 4,
        "attention_types": [[["global", "local"], 2]],
        "num_heads": HEADS,
        "intermediate_size": 2 * WIDTH,
        "window_size": 4,
        **special_tokens(),
    },
    two_norm_stream(4),
    "GPTNeoBlock adds attention and MLP one after the other behind ln_1 and ln_2, alternating global and "
    "local attention; ln_f closes the stream.",
)

GPT_J = hf_case(
    "gptj",
    "GPTJConfig",
    "GPTJForCausalLM",
    {
        "vocab_size": VOCAB,
        "n_positions": 64,
        "n_embd": WIDTH,
        "n_layer": LAYERS,
        "n_head": HEADS,
        "rotary_dim": 4,
        **special_tokens(),
    },
    (
        Expected(
            writes=LAYERS,
            reads=LAYERS + 1,
            read_modules=_block_reads("transformer.h", ("ln_1",), "transformer.ln_f"),
        ),
    ),
    "GPTJBlock feeds attention and MLP from one ln_1 and computes `attn + mlp + residual`, which adds the "
    "two branches first: one read and one write per block.",
)


def _gpt_neox(name: str, parallel: bool, streams: tuple[Expected, ...], why: str) -> Case:
    config = _llama_config(use_parallel_residual=parallel, rotary_pct=0.5)
    del config["num_key_value_heads"]
    return hf_case(name, "GPTNeoXConfig", "GPTNeoXForCausalLM", config, streams, why)


GPT_NEOX_PARALLEL = _gpt_neox(
    "gpt_neox_parallel",
    True,
    (Expected(writes=LAYERS, reads=2 * LAYERS + 1),),
    "GPTNeoXLayer applies input_layernorm and post_attention_layernorm to the same state (two reads) and "
    "computes `mlp + attn + hidden_states`, one write per layer.",
)
GPT_NEOX_SEQUENTIAL = _gpt_neox(
    "gpt_neox_sequential",
    False,
    two_norm_stream(LAYERS),
    "With use_parallel_residual off, GPTNeoXLayer adds attention first and the MLP reads that sum: two "
    "writes and two reads per layer, then final_layer_norm.",
)

OPT = hf_case(
    "opt",
    "OPTConfig",
    "OPTForCausalLM",
    {
        "vocab_size": VOCAB,
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "ffn_dim": 2 * WIDTH,
        "max_position_embeddings": 64,
        "do_layer_norm_before": True,
        "num_attention_heads": HEADS,
        "word_embed_proj_dim": WIDTH,
        **special_tokens(),
    },
    two_norm_stream(LAYERS),
    "OPTDecoderLayer with do_layer_norm_before norms before each sublayer; between attention and MLP the "
    "state is reshaped to two dimensions and viewed back after the addition, which does not end the stream.",
)

BLOOM = hf_case(
    "bloom",
    "BloomConfig",
    "BloomForCausalLM",
    {"vocab_size": VOCAB, "hidden_size": WIDTH, "n_layer": LAYERS, "n_head": HEADS, **special_tokens()},
    two_norm_stream(LAYERS),
    "BloomAttention and BloomMLP end in dropout_add, `residual + out`; word_embeddings_layernorm comes "
    "before the root, so it is no read.",
)

MPT = hf_case(
    "mpt",
    "MptConfig",
    "MptForCausalLM",
    {"vocab_size": VOCAB, "d_model": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "max_seq_len": 64},
    two_norm_stream(LAYERS),
    "MptBlock adds attention behind norm_1 in the block and the MLP behind norm_2 inside MptMLP, both as "
    "`branch + residual`; norm_f ends the stream.",
)


def _falcon_config(**changes: object) -> dict[str, object]:
    return {
        "vocab_size": VOCAB,
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **changes,
    }


FALCON = hf_case(
    "falcon",
    "FalconConfig",
    "FalconForCausalLM",
    _falcon_config(),
    (Expected(writes=LAYERS, reads=LAYERS + 1),),
    "Parallel attention by default: one input_layernorm feeds attention and MLP, `mlp_output += "
    "attention_output` merges the branches in place, and dropout_add makes one write.",
)
FALCON_NEW = hf_case(
    "falcon_new_decoder",
    "FalconConfig",
    "FalconForCausalLM",
    _falcon_config(new_decoder_architecture=True, num_kv_heads=2),
    (Expected(writes=LAYERS, reads=2 * LAYERS + 1),),
    "new_decoder_architecture gives each layer ln_attn and ln_mlp on the same state: two reads, and still "
    "one write, as the branches are merged before dropout_add.",
)
FALCON_SEQUENTIAL = hf_case(
    "falcon_sequential",
    "FalconConfig",
    "FalconForCausalLM",
    _falcon_config(parallel_attn=False, alibi=True),
    two_norm_stream(LAYERS),
    "Without parallel_attn the layer makes one dropout_add after attention and one after the MLP, behind "
    "input_layernorm and post_attention_layernorm.",
)

LLAMA = hf_case(
    "llama",
    "LlamaConfig",
    "LlamaForCausalLM",
    _llama_config(),
    (
        Expected(
            writes=2 * LAYERS,
            reads=2 * LAYERS + 1,
            read_modules=_block_reads("model.layers", ("input_layernorm", "post_attention_layernorm"), "model.norm"),
        ),
    ),
    "LlamaDecoderLayer computes `residual + attention` behind input_layernorm and `residual + mlp` behind "
    "post_attention_layernorm; LlamaModel ends in norm. The rotary embedding takes only dtype and device.",
)


def _like_llama(name: str, prefix: str, why: str, **changes: object) -> Case:
    return hf_case(
        name,
        f"{prefix}Config",
        f"{prefix}ForCausalLM",
        _llama_config(**changes),
        two_norm_stream(LAYERS),
        why,
    )


LIKE_LLAMA = (
    _like_llama("mistral", "Mistral", "MistralDecoderLayer: two norms, two additions, as Llama.", sliding_window=8),
    _like_llama("qwen2", "Qwen2", "Qwen2DecoderLayer: two norms, two additions; the biases sit in q, k and v."),
    _like_llama(
        "qwen3",
        "Qwen3",
        "Qwen3DecoderLayer: two norms, two additions; the norms of queries and keys read projections, not states.",
        head_dim=8,
    ),
    _like_llama(
        "gemma2",
        "Gemma2",
        "Gemma2DecoderLayer norms before and after each sublayer; the norms after it act on the branch, so "
        "only the two before it, and the final one, are reads. The embedding's scale lies before the root.",
        head_dim=8,
        sliding_window=8,
    ),
    _like_llama(
        "phi3",
        "Phi3",
        "Phi3DecoderLayer: as Llama, with a dropout on each branch before it is added.",
    ),
    _like_llama(
        "granite",
        "Granite",
        "GraniteDecoderLayer scales each branch by residual_multiplier before `residual + branch`; the "
        "embedding's multiplier lies before the root.",
        residual_multiplier=0.5,
        embedding_multiplier=3.0,
        logits_scaling=2.0,
    ),
    _like_llama(
        "olmo",
        "Olmo",
        "OlmoDecoderLayer: two norms, two additions; OlmoLayerNorm has no weights, which makes it no less a norm.",
    ),
)

GEMMA3 = hf_case(
    "gemma3",
    "Gemma3TextConfig",
    "Gemma3ForCausalLM",
    _llama_config(
        head_dim=8,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"] * 2,
        num_hidden_layers=4,
    ),
    two_norm_stream(4),
    "Gemma3DecoderLayer has the four norms of Gemma 2, of which the two before the sublayers read the "
    "stream; two layer types with their own rotary embedding.",
)

PHI = hf_case(
    "phi",
    "PhiConfig",
    "PhiForCausalLM",
    _llama_config(partial_rotary_factor=0.5),
    (Expected(writes=LAYERS, reads=LAYERS + 1),),
    "PhiDecoderLayer feeds attention and MLP from one input_layernorm and computes `attn + mlp + residual`: "
    "the branches are added first, one write per layer.",
)

COHERE = hf_case(
    "cohere",
    "CohereConfig",
    "CohereForCausalLM",
    _llama_config(),
    (Expected(writes=2 * LAYERS, reads=LAYERS + 1),),
    "CohereDecoderLayer computes `residual + attention + mlp`, which adds to the residual twice; both "
    "branches come from one input_layernorm, and nobody but the second addition reads the state in between.",
)

OLMO2 = hf_case(
    "olmo2",
    "Olmo2Config",
    "Olmo2ForCausalLM",
    _llama_config(),
    (Expected(writes=2 * LAYERS, reads=2 * LAYERS + 1, unnormed=LAYERS),),
    "Olmo2DecoderLayer gives the raw state to attention and MLP and norms their outputs. The attention does not "
    "feel its scale, for queries and keys are normed behind their projections and the values behind the attention; "
    "the MLP feels it in its activation. The final norm reads a normed state.",
    declined="unnormed_read",
)

CASES: tuple[Case, ...] = (
    GPT2,
    GPT_NEO,
    GPT_J,
    GPT_NEOX_PARALLEL,
    GPT_NEOX_SEQUENTIAL,
    OPT,
    BLOOM,
    MPT,
    FALCON,
    FALCON_NEW,
    FALCON_SEQUENTIAL,
    LLAMA,
    *LIKE_LLAMA,
    GEMMA3,
    PHI,
    COHERE,
    OLMO2,
)
