"""Keys of other libraries' files whose values change nothing in evaluation here, each with the reason."""

from tljax.io.json_keys import with_reason

_TRAINING = "only acts in training, where `regularize` and `optim` say what happens here"
_STORED = "what it decided is in the weights already"
_GENERATION = "is for generating text, and encoders generate none"
_INTERNAL = "is how that library runs or names things; the numbers are the same"
_ABOUT = "is said of the model, and changes nothing in it"

# transformers' config.json, of any model.
TRANSFORMERS = with_reason(
    {
        _ABOUT: (
            *("_name_or_path", "name_or_path", "transformers_version", "finetuning_task", "task_specific_params"),
            *("language", "license", "model_type", "_commit_hash"),
        ),
        _INTERNAL: (
            *("torch_dtype", "dtype", "torchscript", "return_dict", "use_return_dict", "use_bfloat16", "use_cache"),
            *("output_attentions", "output_hidden_states", "output_past", "chunk_size_feed_forward"),
            *("gradient_checkpointing", "attn_implementation", "_attn_implementation", "attention_type"),
            *("_attn_implementation_autoset", "_attn_implementation_internal", "_output_attentions", "xla_device"),
            *("tf_legacy_loss", "_num_labels", "num_labels", "label2id"),  # `id2label` is what is read
        ),
        _TRAINING: (
            *("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "drop_path_rate"),
            *("dropout", "attention_dropout", "qa_dropout", "seq_classif_dropout", "initializer_range"),
            *("semantic_loss_ignore_index", "use_mask_token", "drop_connect_rate", "dropout_rate"),
            *("batch_norm_momentum", "classifier_dropout_prob"),
        ),
        _STORED: ("sinusoidal_pos_embds", "tie_word_embeddings", "tie_encoder_decoder"),
        "pads with what the tokenizer says, which lies beside it": (
            *("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "mask_token_id", "tokenizer_class"),
            *("decoder_start_token_id", "pad_token_id", "prefix"),
        ),
        _GENERATION: (
            *("max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups"),
            *("diversity_penalty", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty"),
            *("length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids"),
            *("num_return_sequences", "output_scores", "return_dict_in_generate", "forced_bos_token_id"),
            *("forced_eos_token_id", "remove_invalid_values", "exponential_decay_length_penalty"),
            *("suppress_tokens", "begin_suppress_tokens", "cross_attention_hidden_size"),
        ),
        "is of a pooler, decoder or feature pyramid that classification does not run": (
            *("pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head"),
            *("pooler_type", "pooler_output_size", "pooler_act", "directionality", "encoder_stride"),
            *("out_features", "out_indices", "_out_features", "_out_indices", "stage_names", "apply_layernorm"),
            *("reshape_hidden_states",),
        ),
    }
)

# transformers' preprocessor_config.json.
PROCESSOR = with_reason(
    {
        _ABOUT: ("processor_class", "_processor_class", "_name_or_path", "transformers_version"),
        _INTERNAL: (
            *("data_format", "input_data_format", "return_tensors", "disable_grouping", "device", "use_fast"),
            *("_valid_processor_keys", "image_seq_length"),
        ),
        "pictures are brought to the network's channels whatever they are": ("do_convert_rgb",),
        "is of segmentation maps": ("do_reduce_labels", "reduce_labels"),
    }
)

# timm's config.json: beside `architecture`, in `model_args` and in `pretrained_cfg`.
TIMM = with_reason(
    {
        _ABOUT: ("num_features", "num_classes", "model_type", "transformers_version", "initializer_range"),
    }
)
TIMM_ARGS = with_reason(
    {
        _TRAINING: (
            *("drop_rate", "drop_path_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate"),
            *("drop_block_rate", "weight_init", "fix_init", "zero_init_last"),
            "head_init_scale",
        ),
        "lets the network take other image sizes, which here it does by resampling": (
            *("dynamic_img_size", "strict_img_size"),
        ),
        "the head's own shape says so": ("num_classes",),
    }
)
TIMM_CFG = with_reason(
    {
        _ABOUT: (
            *("url", "file", "hf_hub_id", "hf_hub_filename", "source", "architecture", "tag", "description"),
            *("origin_url", "paper_name", "paper_ids", "notes", "num_classes", "label_descriptions", "num_features"),
        ),
        "timm tests at it where it is asked to (`use_test_size`), and not by itself": (
            *("test_input_size", "test_crop_pct", "test_pool_size"),
        ),
        "is about other image sizes, which the network here takes by resampling": (
            *("fixed_input_size", "min_input_size", "pool_size"),
        ),
        "names layers, which the table of names here knows": ("first_conv", "classifier"),
    }
)

# tokenizer_config.json.
TOKENIZER = with_reason(
    {
        _ABOUT: (
            "name_or_path",
            "processor_class",
            "tokenizer_file",
            "special_tokens_map_file",
            "transformers_version",
        ),
        _INTERNAL: (
            "use_fast",
            "model_input_names",
            "backend",
            "is_local",
            "local_files_only",
            "legacy",
            "trim_offsets",
        ),
        _GENERATION: ("chat_template", "clean_up_tokenization_spaces", "errors"),
        "is an argument of the calls that it was trained with; a call here has `task.max_tokens`": (
            *("max_length", "stride", "truncation_strategy", "pad_to_multiple_of", "pad_to_max_length", "truncation"),
            *("padding",),
        ),
        "the special tokens around a text stand in tokenizer.json": ("bos_token", "eos_token"),
    }
)

# sentence-transformers: sentence_bert_config.json, config_sentence_transformers.json and 1_Pooling/config.json.
SENTENCE = with_reason(
    {
        _ABOUT: ("__version__", "model_type"),
        _INTERNAL: ("transformer_task", "modality_config", "module_output_name", "method_output_name"),
        "is how two embeddings are compared, and a head compares none": ("similarity_fn_name", "score_functions"),
        "is the network's width": ("word_embedding_dimension", "embedding_dimension"),
        "prompts are only put before texts where one is the default": ("prompts", "include_prompt"),
    }
)
