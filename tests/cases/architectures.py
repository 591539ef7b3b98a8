"""Architectures of tiny random models, by name, and what fedft is expected to do with each."""

# fmt: off
V = 320
VOCABULARY = {"vocab_size": V}
COMMON = dict(VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
              num_key_value_heads=2, max_position_embeddings=128, bos_token_id=1, eos_token_id=2, pad_token_id=0)
GPT = dict(VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128, bos_token_id=1, eos_token_id=2, pad_token_id=0)
MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
       "shared_expert_intermediate_size": 32, "decoder_sparse_step": 1}
ENC = dict(VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
           max_position_embeddings=130, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2)
S2S = dict(VOCABULARY, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, encoder_layers=2, decoder_layers=2,
           encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64,
           max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=0,
           forced_eos_token_id=None)

# name: (config class, arguments, expectation for causal-lm, for classification and, if there is one, for seq2seq-lm):
# "ok", "refuse" or "" (not asked)
ARCHS = {
    "llama": ("LlamaConfig", COMMON, "ok", "ok", "refuse"),
    "llama-tied": ("LlamaConfig", {**COMMON, "tie_word_embeddings": True}, "ok", ""),
    "llama-bias": ("LlamaConfig", {**COMMON, "attention_bias": True, "mlp_bias": True}, "ok", ""),
    "mistral": ("MistralConfig", {**COMMON, "sliding_window": 16}, "ok", ""),
    "ministral": ("MinistralConfig", {**COMMON, "head_dim": 8}, "ok", ""),
    "qwen2": ("Qwen2Config", COMMON, "ok", "ok"),
    "qwen3": ("Qwen3Config", {**COMMON, "head_dim": 8, "tie_word_embeddings": True}, "ok", "ok"),
    "gemma": ("GemmaConfig", {**COMMON, "head_dim": 8}, "ok", ""),
    "gemma2": ("Gemma2Config", {**COMMON, "head_dim": 8, "sliding_window": 16}, "ok", ""),
    "gemma3_text": ("Gemma3TextConfig", {**COMMON, "head_dim": 8, "sliding_window": 16}, "ok", "ok"),
    "phi": ("PhiConfig", COMMON, "ok", ""),
    "phi3": ("Phi3Config", COMMON, "ok", ""),
    "olmo2": ("Olmo2Config", COMMON, "ok", ""),
    "smollm3": ("SmolLM3Config", COMMON, "ok", ""),
    "stablelm": ("StableLmConfig", COMMON, "ok", ""),
    "starcoder2": ("Starcoder2Config", COMMON, "ok", ""),
    "cohere": ("CohereConfig", COMMON, "ok", ""),
    "granite": ("GraniteConfig", COMMON, "ok", ""),
    "glm": ("GlmConfig", {**COMMON, "head_dim": 8}, "ok", ""),
    "lfm2": ("Lfm2Config", {**COMMON, "layer_types": ["conv", "full_attention"]}, "ok", ""),
    "gpt2": ("GPT2Config", GPT, "ok", "ok"),
    "gpt_neo": ("GPTNeoConfig", dict(VOCABULARY, hidden_size=32, num_layers=2, num_heads=4,
        attention_types=[[["global", "local"], 1]], max_position_embeddings=128, bos_token_id=1, eos_token_id=2,
        pad_token_id=0), "ok", ""),
    "gpt_neox": ("GPTNeoXConfig", COMMON, "ok", ""),
    "gptj": ("GPTJConfig", {**GPT, "rotary_dim": 4}, "ok", ""),
    "gpt_bigcode": ("GPTBigCodeConfig", GPT, "ok", ""),
    "opt": ("OPTConfig", dict(VOCABULARY, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128, word_embed_proj_dim=32, bos_token_id=1, eos_token_id=2, pad_token_id=0), "ok", ""),
    "bloom": ("BloomConfig", dict(VOCABULARY, hidden_size=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2,
        pad_token_id=0), "ok", "ok"),
    "falcon": ("FalconConfig", {**COMMON, "new_decoder_architecture": True, "num_kv_heads": 2}, "ok", ""),
    "mpt": ("MptConfig", dict(VOCABULARY, d_model=32, n_layers=2, n_heads=4, max_seq_len=128, bos_token_id=1,
        eos_token_id=2, pad_token_id=0), "ok", ""),
    "mixtral": ("MixtralConfig", {**COMMON, **MOE}, "ok", ""),
    "qwen2_moe": ("Qwen2MoeConfig", {**COMMON, **MOE}, "ok", ""),
    "qwen3_moe": ("Qwen3MoeConfig", {**COMMON, **MOE, "head_dim": 8}, "ok", ""),
    "olmoe": ("OlmoeConfig", {**COMMON, **MOE}, "ok", ""),
    "gpt_oss": ("GptOssConfig", {**COMMON, **MOE, "head_dim": 8, "sliding_window": 16}, "ok", ""),
    "deepseek_v3": ("DeepseekV3Config", {**COMMON, "num_key_value_heads": 4, "n_routed_experts": 4,
        "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "moe_intermediate_size": 32,
        "first_k_dense_replace": 1, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
        "v_head_dim": 8}, "ok", ""),
    "mamba": ("MambaConfig", dict(VOCABULARY, hidden_size=32, state_size=4, num_hidden_layers=2, bos_token_id=1,
        eos_token_id=2, pad_token_id=0), "ok", ""),
    "mamba2": ("Mamba2Config", dict(VOCABULARY, hidden_size=32, state_size=8, num_hidden_layers=2, num_heads=8,
        head_dim=8, n_groups=1, chunk_size=16, bos_token_id=1, eos_token_id=2, pad_token_id=0), "ok", ""),
    "falcon_h1": ("FalconH1Config", {**COMMON, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8,
        "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_chunk_size": 16}, "ok", ""),
    "t5": ("T5Config", S2S, "refuse", "ok", "ok"),
    "t5-gated": ("T5Config", {**S2S, "tie_word_embeddings": False, "feed_forward_proj": "gated-gelu"}, "", "", "ok"),
    "mt5": ("MT5Config", S2S, "refuse", "", "ok"),
    "bart": ("BartConfig", S2S, "refuse", "ok", "ok"),
    "mbart": ("MBartConfig", S2S, "refuse", "", "ok"),
    "pegasus": ("PegasusConfig", S2S, "refuse", "", "ok"),
    "marian": ("MarianConfig", S2S, "refuse", "", "ok"),
    "t5gemma": ("T5GemmaConfig", {**VOCABULARY, "encoder": {**COMMON, "head_dim": 8},
        "decoder": {**COMMON, "head_dim": 8}, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
        "decoder_start_token_id": 1}, "refuse", "", "ok"),
    "fsmt": ("FSMTConfig", {"langs": ["a", "b"], "src_vocab_size": V, "tgt_vocab_size": V, "d_model": 32,
        "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
        "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}, "", "", "refuse"),
    "m2m_100": ("M2M100Config", S2S, "refuse", "", "ok"),
    "bert": ("BertConfig", ENC, "refuse", "ok", "refuse"),
    "roberta": ("RobertaConfig", ENC, "refuse", "ok"),
    "xlm_roberta": ("XLMRobertaConfig", ENC, "", "ok"),
    "distilbert": ("DistilBertConfig", dict(VOCABULARY, dim=32, hidden_dim=64, n_layers=2, n_heads=4,
        max_position_embeddings=130, pad_token_id=0), "refuse", "ok"),
    "albert": ("AlbertConfig", {**ENC, "embedding_size": 16}, "", "ok"),
    "electra": ("ElectraConfig", {**ENC, "embedding_size": 16}, "", "ok"),
    "deberta_v2": ("DebertaV2Config", {**ENC, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}, "", "ok"),
    "mpnet": ("MPNetConfig", ENC, "", "ok"),
    "modernbert": ("ModernBertConfig", ENC, "", "ok"),
}
# fmt: on

TWELVE = dict.fromkeys(
    ("llama", "mistral", "qwen2", "gemma", "phi", "gpt2", "gpt_neox", "opt", "bloom"), "causal-lm"
) | dict.fromkeys(("bert", "roberta", "distilbert"), "sequence-classification")
"""Those that are tried with every change, and the task of each."""
