/* The rows were taken from the parsers, dataclasses and modules that they name, and tried out on
 * real models, one value after the other (tests/interop/test_megatron_args.py). */
#include "model/megatron_fields.h"

#include <assert.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Names without a value of their own, side by side. */
typedef struct group {
    mgr_field_rule rule;
    const char *source, *names;
} group;

static const group groups[] = {
    {MGR_FIELD_READ, "model/megatron_args.c",
     "num_layers hidden_size ffn_hidden_size num_attention_heads group_query_attention "
     "num_query_groups kv_channels seq_length max_position_embeddings padded_vocab_size "
     "vocab_size make_vocab_size_divisible_by position_embedding_type "
     "add_position_embedding use_rotary_position_embeddings rotary_base use_rope_scaling "
     "rope_scaling_factor rotary_seq_len_interpolation_factor normalization "
     "layernorm_epsilon norm_epsilon swiglu gated_linear_unit squared_relu "
     "bias_gelu_fusion bias_activation_fusion add_bias_linear add_qkv_bias qk_layernorm "
     "untie_embeddings_and_output_weights init_method_std num_experts num_moe_experts "
     "moe_ffn_hidden_size moe_router_topk moe_router_pre_softmax moe_layer_freq "
     "moe_router_score_function moe_router_topk_scaling_factor moe_router_num_groups "
     "moe_router_group_topk moe_router_enable_expert_bias "
     "moe_shared_expert_intermediate_size moe_shared_expert_gate rotary_percent "
     "moe_grouped_gemm moe_use_legacy_grouped_gemm transformer_impl params_dtype bf16 fp16"},
    {MGR_FIELD_SPLIT, "form/megatron_write.c writes those that a loader reads",
     "tensor_model_parallel_size pipeline_model_parallel_size "
     "virtual_pipeline_model_parallel_size expert_model_parallel_size "
     "expert_tensor_parallel_size decoder_first_pipeline_num_layers "
     "decoder_last_pipeline_num_layers num_layers_in_first_pipeline_stage "
     "num_layers_in_last_pipeline_stage num_layers_per_virtual_pipeline_stage "
     "num_virtual_stages_per_pipeline_rank pipeline_model_parallel_layout "
     "account_for_embedding_in_pipeline_split account_for_loss_in_pipeline_split "
     "standalone_embedding_stage pipeline_model_parallel_split_rank "
     "encoder_pipeline_model_parallel_size encoder_tensor_model_parallel_size "
     "transformer_pipeline_model_parallel_size inter_layer_model_parallel_size "
     "intra_layer_model_parallel_size model_parallel_size "
     "tensor_parallel_num_weight_shards expert_tensor_parallel_num_weight_shards "
     "world_size data_parallel_size rank local_rank ckpt_format dist_ckpt_format "
     "dist_ckpt_format_deprecated use_dist_ckpt use_dist_ckpt_deprecated no_save_optim "
     "no_save_rng consumed_train_samples skipped_train_samples consumed_valid_samples "
     "iteration curr_iteration"},
    {MGR_FIELD_INERT, "0.19.2 arguments.py, options", "help"},
    {MGR_FIELD_INERT, "0.19.2 arguments.py, transformer configuration",
     "pipeline_model_parallel_comm_backend sequence_parallel context_parallel_size "
     "hierarchical_context_parallel_sizes max_seqlen_per_dp_cp_rank "
     "hybrid_context_parallel perform_initialization use_cpu_initialization "
     "deterministic_mode tp_comm_overlap tp_comm_bulk_wgrad tp_comm_bulk_dgrad "
     "tp_comm_overlap_ag tp_comm_overlap_rs tp_comm_overlap_rs_dgrad tp_comm_split_ag "
     "tp_comm_split_rs cross_entropy_loss_fusion cross_entropy_fusion_impl "
     "tp_comm_bootstrap_backend overlap_moe_expert_parallel_comm delay_wgrad_compute "
     "overlap_dispatch_backward_with_experts_wgrad ep_overlap_early_attn_memory_release "
     "use_ring_exchange_p2p defer_embedding_wgrad_compute wgrad_deferral_limit "
     "overlap_p2p_comm_warmup_flush microbatch_group_size_per_vp_stage mtp_standalone "
     "cpu_offloading_num_layers cpu_offloading_retain_pinned_cpu_buffers "
     "mtp_loss_scaling_factor mtp_use_repeated_layer mtp_detach_heads attention_backend "
     "flash_attention_version hidden_dropout attention_dropout fp32_residual_connection "
     "qk_clip qk_clip_alpha qk_clip_threshold calculate_per_token_loss dsa_indexer_n_heads "
     "dsa_indexer_head_dim dsa_indexer_topk dsa_indexer_topk_freq "
     "dsa_indexer_skip_topk_offset dsa_indexer_loss_coeff dsa_indexer_use_sparse_loss "
     "dsa_kernel_backend dsa_indexer_rope_interleaved dsa_indexer_rotate_activation "
     "dsa_indexer_scoring_relu dsa_indexer_k_norm_epsilon dsa_indexer_k_norm_fp32 "
     "linear_conv_kernel_dim linear_key_head_dim linear_value_head_dim "
     "linear_num_key_heads linear_num_value_heads embedding_init_method_std "
     "init_model_with_meta_device mup_width_mult mup_base_hidden_size mup_embedding_mult "
     "mup_output_mult mup_base_head_dim mup_attn_scale_power apply_query_key_layer_scaling "
     "disable_bf16_reduced_precision_matmul use_fused_weighted_squared_relu "
     "fused_residual_rmsnorm use_transformer_engine_op_fuser recompute_granularity "
     "recompute_method recompute_num_layers distribute_saved_activations recompute_modules "
     "fp8 fp8_recipe fp8_quantizer_factory fp8_margin fp8_interval fp8_amax_history_len "
     "fp8_amax_compute_algo fp8_wgrad fp8_output_proj first_last_layers_bf16 "
     "num_layers_at_start_in_bf16 num_layers_at_end_in_bf16 use_kitchen_attention "
     "kitchen_attention_backend fp4 fp4_recipe fp4_quantizer_factory "
     "high_priority_a2a_comm_stream moe_shared_expert_overlap "
     "use_grouped_gemm_for_shared_expert moe_enable_routing_replay "
     "moe_router_padding_for_quantization moe_router_padding_for_fp8 moe_router_dtype "
     "moe_router_bias_update_rate moe_router_quantile_balancing_ema "
     "use_grouped_gemm_for_dense_mlp moe_single_grouped_weight moe_single_grouped_bias "
     "moe_z_loss_coeff moe_token_dispatcher_type moe_enable_deepep "
     "moe_flex_dispatcher_backend moe_permute_fusion_into_hybridep "
     "moe_hybridep_pad_uneven_dispatch_inputs moe_per_layer_logging "
     "moe_pad_expert_input_to_capacity moe_pad_experts_for_cuda_graph_inference "
     "moe_token_drop_policy moe_layer_recompute moe_permute_fusion moe_router_fusion "
     "moe_flex_dispatcher_num_sms moe_deepep_num_sms moe_hybridep_num_sms "
     "moe_hybridep_num_blocks_permute moe_hybridep_num_blocks_unpermute "
     "moe_hybridep_num_sms_preprocessing moe_ncclep_static_shape moe_ncclep_zero_copy "
     "enable_cuda_graph cuda_graph_warmup_steps external_cuda_graph cuda_graph_impl "
     "inference_cuda_graph_scope clone_scatter_output_in_embedding config_logger_dir "
     "flash_decode batch_invariant_mode use_te_activation_func symmetric_ar_type "
     "nccl_all_reduce_for_prefill inference_fuse_tp_communication "
     "inference_disable_triton_nvls_kernels inference_grouped_gemm_backend "
     "inference_moe_disable_fused_quant_kernels inference_moe_token_dispatcher_type "
     "mrope_section mamba_state_dim mamba_head_dim mamba_num_groups mamba_num_heads "
     "use_mamba_mem_eff_path mlp_chunks_for_prefill mlp_chunks_for_training "
     "fine_grained_activation_offloading offload_modules min_offloaded_tensor_size "
     "delay_offload_until_cuda_graph delta_offload_bytes_across_pp_ranks "
     "activation_offload_fraction moe_paged_stash moe_paged_stash_page_size "
     "moe_paged_stash_buffer_size_factor_cuda moe_paged_stash_buffer_size_factor_cpu "
     "fine_grained_offloading_max_inflight_offloads"},
    {MGR_FIELD_INERT, "0.19.2 arguments.py, network size",
     "encoder_num_layers decoder_num_layers window_attn_skip_freq "
     "yarn_original_max_position_embeddings yarn_beta_fast yarn_beta_slow "
     "yarn_correction_range_round_to_int relative_attention_num_buckets "
     "relative_attention_max_distance openai_gelu onnx_safe bert_binary_head"},
    {MGR_FIELD_INERT, "0.19.2 arguments.py, regularization",
     "weight_decay apply_wd_to_qk_layernorm clip_grad adam_beta1 adam_beta2 adam_eps "
     "sgd_momentum muon_momentum muon_split_qkv muon_nesterov muon_scale_mode "
     "muon_fp32_matmul_prec muon_coefficient_type muon_num_ns_steps muon_tp_mode "
     "muon_extra_scale_factor muon_scalar_optimizer lion_beta1 lion_beta2 "
     "no_weight_decay_cond_type"},
    {MGR_FIELD_INERT, "0.19.2 arguments.py, profiling",
     "profile profile_step_start profile_step_end use_pytorch_profiler "
     "pytorch_profiler_collect_shapes pytorch_profiler_collect_callstack "
     "pytorch_profiler_collect_chakra profile_ranks record_memory_history "
     "memory_snapshot_path record_shapes nvtx_ranges"},
    {MGR_FIELD_INERT, "0.19.2 arguments.py, training",
     "micro_batch_size global_batch_size rampup_batch_size step_batch_size_schedule "
     "decrease_batch_size_if_needed empty_unused_memory_level "
     "check_weight_hash_across_dp_replicas_interval gpu_sniff_test_interval "
     "train_sync_interval train_iters train_samples exit_interval exit_duration_in_mins "
     "exit_signal_handler exit_signal exit_signal_handler_for_dataloader "
     "exit_signal_handler_for_training manual_gc manual_gc_interval manual_gc_eval "
     "iterations_to_skip batch_size recompute_activations check_for_nan_in_loss_and_grad "
     "check_for_large_grads result_rejected_tracker_filename tp_comm_overlap_cfg "
     "checkpoint_activations masked_softmax_fusion bias_swiglu_fusion bias_dropout_fusion "
     "apply_rope_fusion use_flash_attn optimizer optimizer_cpu_offload "
     "optimizer_cuda_graph optimizer_offload_fraction use_torch_optimizer_for_cpu_offload "
     "overlap_cpu_optimizer_d2h_h2d dump_param_to_param_group_map pin_cpu_grads "
     "pin_cpu_params dataloader_type no_persist_layer_norm gradient_accumulation_fusion "
     "deprecated_use_mcore_models"},
    {MGR_FIELD_INERT, "0.19.2 arguments.py, rl",
     "perform_rl_step rl_prompts_per_eval grpo_prompts_per_step grpo_group_size "
     "rl_generation_lag rl_submission_granularity rl_consumption_granularity "
     "grpo_iterations grpo_clamp_eps_lower grpo_clamp_eps_upper grpo_kl_beta "
     "grpo_entropy_term_weight grpo_filter_groups_with_same_reward langrl_env_config "
     "rl_default_temperature rl_default_top_p rl_default_top_k "
     "rl_offload_optimizer_during_inference rl_kv_cache_management_mode "
     "rl_persist_cuda_graphs rl_partial_rollouts rl_inference_logprobs_is_correction "
     "rl_importance_sampling_truncation_coef rl_use_sequence_packing "
     "rl_sequence_packing_max_sequences_per_bin rl_sequence_packing_algo "
     "rl_training_cuda_graphs rl_inference_tensor_model_parallel_size "
     "rl_inference_pipeline_model_parallel_size rl_inference_expert_model_parallel_size "
     "rl_inference_expert_tensor_model_parallel_size "
     "rl_inference_model_unified_memory_level rl_offload_inference_model_weights_when_idle "
     "refit_method rl_verify_model_weights_swap rl_skip_bos_token rl_profile "
     "rl_profile_dir rl_inference_parsers"},
    {MGR_FIELD_INERT, "0.19.2 arguments.py, RNG and initialization",
     "seed te_rng_tracker inference_rng_tracker data_parallel_random_init "
     "init_method_xavier_uniform"},
    {MGR_FIELD_INERT, "0.19.2 arguments.py, learning rate and weight decay",
     "lr_decay_style lr_wsd_decay_style lr_decay_iters lr_decay_samples lr_wsd_decay_iters "
     "lr_wsd_decay_samples lr_warmup_fraction lr_warmup_iters lr_warmup_samples "
     "lr_warmup_init override_opt_param_scheduler use_checkpoint_opt_param_scheduler "
     "start_weight_decay end_weight_decay weight_decay_incr_style lr warmup min_lr "
     "decoupled_lr decoupled_min_lr freeze_all_layers"},
    {MGR_FIELD_INERT, "0.19.2 arguments.py, checkpointing",
     "save save_interval save_params_interval save_activations_interval "
     "save_tokens_per_expert_interval save_wgrads_interval save_dgrads_interval "
     "save_retain_interval load load_main_params_from_ckpt non_persistent_save_interval "
     "non_persistent_ckpt_type non_persistent_global_ckpt_dir "
     "non_persistent_local_ckpt_dir non_persistent_local_ckpt_algo finetune "
     "pretrained_checkpoint ckpt_step use_checkpoint_args use_mp_args_from_checkpoint_args "
     "use_tokenizer_model_from_checkpoint_args exit_on_missing_checkpoint "
     "auto_detect_ckpt_format ckpt_convert_format ckpt_convert_save "
     "ckpt_convert_update_legacy_dist_opt_format ckpt_fully_parallel_save async_save "
     "async_strategy use_persistent_ckpt_worker async_ckpt_cpu_priority "
     "async_ckpt_io_priority async_ckpt_use_cpu_shm ckpt_fully_parallel_load "
     "ckpt_fully_parallel_load_exchange_algo ckpt_fully_parallel_save_process_group "
     "ckpt_fully_parallel_load_process_group ckpt_assume_constant_structure "
     "ckpt_load_validate_sharding_integrity strict_fsdp_dtensor_load dist_ckpt_strictness "
     "dist_ckpt_save_pre_mcore_014 dist_ckpt_optim_fully_reshardable "
     "distrib_optim_fully_reshardable_mem_efficient replication replication_jump "
     "replication_factor verify_integrity stream_ckpt_dequant no_load_optim no_load_rng "
     "override_ckpt_iteration dist_ckpt_workers ckpt_fully_parallel_save_deprecated"},
    {MGR_FIELD_INERT, "0.19.2 arguments.py, mixed precision",
     "grad_reduce_in_bf16 loss_scale initial_loss_scale min_loss_scale loss_scale_window "
     "hysteresis attention_softmax_in_fp32 accumulate_allreduce_grads_in_fp32 "
     "fp16_lm_cross_entropy reuse_grad_buf_for_mxfp8_param_ag "
     "mamba_training_ssm_states_dtype"},
    {MGR_FIELD_INERT, "0.19.2 arguments.py, distributed init",
     "distributed_backend distributed_timeout_minutes align_grad_reduce lazy_mpu_init "
     "use_megatron_fsdp use_torch_fsdp2 nccl_communicator_config_path use_tp_pp_dp_mapping "
     "use_gloo_process_groups use_sharp sharp_enabled_group high_priority_stream_groups "
     "distributed_timeout_seconds_after_init flight_recorder_dump_path "
     "flight_recorder_trace_buffer_size flight_recorder_dump_on_timeout "
     "flight_recorder_include_stack_trace flight_recorder_include_only_active "
     "flight_recorder_extra_dump_on_exec disable_jit_fuser overlap_p2p_comm "
     "overlap_grad_reduce ddp_num_buckets ddp_bucket_size "
     "ddp_pad_buckets_for_high_nccl_busbw ddp_reduce_scatter_with_fp32_accumulation "
     "ddp_param_name_patterns_for_fp32_local_accumulation ddp_average_in_collective "
     "overlap_param_gather overlap_param_gather_with_optimizer_step align_param_gather "
     "use_distributed_optimizer use_layer_wise_param_layout nccl_ub "
     "disable_symmetric_registration fsdp_manual_registration create_all_gather_group "
     "data_parallel_sharding_strategy outer_dp_sharding_strategy "
     "gradient_reduce_div_fusion fsdp_double_buffer suggested_communication_unit_size "
     "keep_fp8_transpose_cache enable_full_sharding_in_hsdp "
     "num_distributed_optimizer_instances torch_fsdp2_reshard_after_forward cp_comm_type "
     "fake_process_group"},
    {MGR_FIELD_INERT, "0.19.2 arguments.py, validation",
     "eval_iters eval_interval start_eval_at_iter eval_global_batch_size "
     "eval_micro_batch_size skip_train test_mode full_validation multiple_validation_sets "
     "validation_set_names"},
    {MGR_FIELD_INERT, "0.19.2 arguments.py, data and dataloader",
     "data_path phase_transition_iterations split train_data_path valid_data_path "
     "test_data_path data_args_path per_split_data_args_path per_dataset_sequences_path "
     "dataloader_fast_cache_load dataloader_defer_npy_index_mmap data_cache_path "
     "mmap_bin_files mock_data encoder_seq_length decoder_seq_length sample_rate mask_prob "
     "short_seq_prob num_workers reset_position_ids reset_attention_mask "
     "dataloader_inter_document_masking eod_mask_loss create_attention_mask_in_dataloader "
     "num_dataset_builder_threads object_storage_cache_path mid_level_dataset_surplus "
     "allow_ambiguous_pad_tokens fim_data fim_rate fim_spm_rate fim_split_sample "
     "fim_fragment_rate fim_no_prefix fim_prefix_token fim_middle_token fim_suffix_token "
     "fim_pad_token fim_eod_token"},
    {MGR_FIELD_INERT, "0.19.2 arguments.py, tokenizer",
     "pad_vocab_size vocab_file merge_file vocab_extra_ids tokenizer_type tokenizer_model "
     "metadata_path special_tokens tiktoken_pattern tiktoken_num_special_tokens "
     "tokenizer_sentencepiece_legacy tokenizer_sentencepiece_ignore_extra_whitespaces "
     "tokenizer_hf_no_use_fast tokenizer_hf_no_include_special_tokens trust_remote_code "
     "null_tokenizer_eod_id null_tokenizer_pad_id chat_template"},
    {MGR_FIELD_INERT, "0.19.2 arguments.py, autoresume",
     "adlr_autoresume adlr_autoresume_interval"},
    {MGR_FIELD_INERT, "0.19.2 arguments.py, biencoder",
     "ict_head_size biencoder_projection_dim biencoder_shared_query_context_model ict_load "
     "bert_load titles_data_path query_in_block_prob use_one_sent_docs evidence_data_path "
     "retriever_report_topk_accuracies retriever_score_scaling block_data_path "
     "embedding_path indexer_batch_size indexer_log_interval"},
    {MGR_FIELD_INERT, "0.19.2 arguments.py, vision",
     "num_classes img_h img_w num_channels patch_dim classes_fraction "
     "data_per_class_fraction data_sharding head_lr_mult vision_pretraining "
     "vision_pretraining_type vision_backbone_type swin_backbone_type mask_type "
     "mask_factor iter_per_epoch dino_local_img_size dino_local_crops_number "
     "dino_head_hidden_size dino_bottleneck_size dino_freeze_last_layer "
     "dino_norm_last_layer dino_warmup_teacher_temp dino_teacher_temp "
     "dino_warmup_teacher_temp_epochs"},
    {MGR_FIELD_INERT, "0.19.2 arguments.py, moe",
     "moe_use_upcycling moe_aux_loss_coeff moe_upcycling_granularity"},
    {MGR_FIELD_INERT, "0.19.2 arguments.py, mla",
     "q_lora_rank kv_lora_rank qk_head_dim qk_pos_emb_head_dim v_head_dim "
     "rotary_scaling_factor mscale mscale_all_dim cache_mla_latents mla_down_proj_fusion"},
    {MGR_FIELD_INERT, "0.19.2 arguments.py, logging",
     "log_interval log_params_norm log_throughput log_progress timing_log_level "
     "timing_log_option tensorboard_dir tensorboard_log_interval tensorboard_queue_size "
     "log_timers_to_tensorboard log_loss_scale_to_tensorboard "
     "log_validation_ppl_to_tensorboard log_memory_to_tensorboard log_memory_interval "
     "log_device_memory_used log_num_zeros_in_grad log_max_attention_logit "
     "barrier_with_L1_time log_world_size_to_tensorboard wandb_project wandb_exp_name "
     "wandb_save_dir wandb_entity logging_level log_energy moe_routing_trace_path "
     "moe_routing_trace_max_training_iters moe_routing_trace_capture_logits "
     "moe_routing_trace_capture_hidden_states moe_routing_trace_dump_weights"},
    {MGR_FIELD_INERT, "0.19.2 arguments.py, Logits Distillation",
     "logits_save_top_k logits_save_top_p logits_save_top_p_min_k logits_save_dir "
     "logits_save_dtype logits_load_dir logits_load_decode_threads "
     "logits_load_prefetch_factor logits_load_msc_prefetch_depth logits_load_kd_loss_alpha "
     "logits_load_ignore_errors"},
    {MGR_FIELD_INERT, "0.19.2 arguments.py, straggler",
     "log_straggler straggler_ctrlr_port straggler_minmax_count "
     "disable_straggler_on_startup"},
    {MGR_FIELD_INERT, "0.19.2 arguments.py, workload inspector", "run_workload_inspector_server"},
    {MGR_FIELD_INERT, "0.19.2 arguments.py, inference",
     "inference_batch_times_seqlen_threshold max_tokens_to_oom output_bert_embeddings "
     "bert_embedder_type cuda_graph_scope_deprecated cuda_graph_modules "
     "use_legacy_static_engine inference_max_requests inference_max_seq_length "
     "inference_dynamic_batching inference_dynamic_batching_buffer_size_gb "
     "inference_dynamic_batching_paused_buffer_size_gb "
     "inference_dynamic_batching_mamba_memory_ratio inference_dynamic_batching_block_size "
     "inference_dynamic_batching_max_requests inference_dynamic_batching_max_tokens "
     "inference_dynamic_batching_num_cuda_graphs "
     "inference_dynamic_batching_track_paused_request_events "
     "inference_dynamic_batching_track_generated_token_events decode_only_cuda_graphs "
     "inference_cuda_graph_all_prefills inference_cuda_graph_max_tokens "
     "inference_dynamic_batching_unified_memory_level enable_chunked_prefill "
     "num_speculative_tokens inference_dynamic_batching_enable_prefix_caching "
     "inference_dynamic_batching_prefix_caching_eviction_policy "
     "inference_dynamic_batching_prefix_caching_coordinator_policy "
     "inference_dynamic_batching_prefix_caching_routing_alpha "
     "inference_dynamic_batching_prefix_caching_mamba_gb "
     "inference_dynamic_batching_cuda_graph_mixed_prefill_count "
     "inference_dynamic_batching_cuda_graph_sizing_distribution "
     "inference_dynamic_batching_sampling_backend offset_sampling_seed_by_dp_rank "
     "inference_dynamic_batching_async_sched_mode inference_dynamic_batching_logprobs_mode "
     "inference_logging_step_interval inference_text_gen_server_logging "
     "inference_wandb_logging inference_coordinator_port mamba_inference_conv_states_dtype "
     "mamba_inference_ssm_states_dtype inference_use_synchronous_zmq_collectives "
     "inference_disable_ep_consensus inference_shards"},
    {MGR_FIELD_INERT, "0.19.2 arguments.py, Transformer-Engine",
     "fp4_param_gather fp8_param_gather te_precision_config_file"},
    {MGR_FIELD_INERT, "0.19.2 arguments.py, experimental",
     "enable_experimental yaml_cfg use_precision_aware_optimizer main_grads_dtype "
     "main_params_dtype exp_avg_dtype exp_avg_sq_dtype megatron_fsdp_main_params_dtype "
     "megatron_fsdp_main_grads_dtype megatron_fsdp_grad_comm_dtype "
     "megatron_fsdp_enable_fine_grained_param_gather megatron_fsdp_max_pool_double_buffer "
     "fsdp_db_use_persist_buf_on_alloc_fail"},
    {MGR_FIELD_INERT, "0.19.2 arguments.py, one logger",
     "enable_one_logger one_logger_project one_logger_run_name one_logger_async "
     "app_tag_run_name app_tag_run_version"},
    {MGR_FIELD_INERT, "0.19.2 arguments.py, In-process restart",
     "inprocess_restart inprocess_max_iterations inprocess_monitor_thread_interval "
     "inprocess_monitor_process_interval inprocess_progress_watchdog_interval "
     "inprocess_heartbeat_interval inprocess_soft_timeout inprocess_hard_timeout "
     "inprocess_heartbeat_timeout inprocess_barrier_timeout inprocess_completion_timeout "
     "inprocess_last_call_wait inprocess_termination_grace_time inprocess_granularity "
     "inprocess_active_world_size inprocess_empty_cuda_cache"},
    {MGR_FIELD_INERT, "0.19.2 arguments.py, ft package",
     "enable_ft_package calc_ft_timeouts ft_num_warmup_iters"},
    {MGR_FIELD_INERT, "0.19.2 arguments.py, rerun engine",
     "error_injection_rate error_injection_type rerun_mode check_for_spiky_loss"},
    {MGR_FIELD_INERT, "0.19.2 arguments.py, msc", "enable_msc disable_msc_deprecated"},
    {MGR_FIELD_INERT, "0.19.2 arguments.py, sft", "sft sft_tokenizer_prompt_format"},
    {MGR_FIELD_INERT, "0.19.2 arguments.py, fault injector",
     "fault_injector_ranks fault_injector_num_ranks fault_injector_fault_types "
     "fault_injector_fault_probabilities fault_injector_fault_delay "
     "fault_injector_delay_start_iteration fault_injector_mtti_seconds "
     "fault_injector_offset_seconds fault_injector_seed"},
    {MGR_FIELD_INERT, "TransformerConfig of core 0.13, 0.16, 0.19",
     "_cpu_offloading_context activation_func_fp8_input_store "
     "async_tensor_model_parallel_allreduce autocast_dtype batch_p2p_comm batch_p2p_sync "
     "beta_fast beta_slow cpu_offloading cpu_offloading_activations "
     "cpu_offloading_double_buffering cpu_offloading_weights "
     "cuda_graph_retain_backward_graph cuda_graph_scope cuda_graph_use_single_mempool "
     "deallocate_pipeline_outputs disable_parameter_transpose_cache embedding_init_method "
     "enable_autocast experimental_attention_variant_loss_scale_func "
     "expert_gtp_weight_remat_size finalize_model_grads_func fp4_param "
     "fp8_dot_product_attention fp8_multi_head_attention fp8_param fused_single_qkv_rope "
     "grad_scale_func grad_sync_func gtp_weight_remat_size hetereogenous_dist_checkpoint "
     "inference_sampling_seed init_method memory_efficient_layer_norm moe_grad_scale_func "
     "moe_token_dropping mtp_grad_scale_func no_sync_func "
     "num_microbatches_with_partial_activation_checkpoints "
     "original_max_position_embeddings output_layer_init_method param_sync_func "
     "persist_layer_norm pipeline_dtype quant_recipe timers tp_comm_atomic_ag "
     "tp_comm_atomic_rs tp_comm_overlap_disable_fc1 tp_comm_overlap_disable_qkv "
     "tp_only_amax_red use_inference_optimized_layers use_kitchen use_te_rng_tracker "
     "variable_seq_lengths"},
    {MGR_FIELD_INERT, "megatron/training/arguments.py of other releases, biencoder",
     "pool_type projection_dim shared_query_context_model"},
    {MGR_FIELD_INERT, "megatron/training/arguments.py of other releases, checkpointing",
     "ckpt_drop_redundant_extra_state load_model_opt_format"},
    {MGR_FIELD_INERT, "megatron/training/arguments.py of other releases, data",
     "allow_trivial_doc async_indexer block_index_path block_top_k index_reload_interval "
     "ner_data_path renormalize_blend_weights s3_cache_path use_random_spans "
     "use_regular_masking cache_dir data_epochs data_loader delim eval_text_key loose_json "
     "max_num_samples max_preds_per_seq presplit_sentences shuffle test_data text_key "
     "tokenizer_model_type tokenizer_path train_data valid_data"},
    {MGR_FIELD_INERT, "megatron/training/arguments.py of other releases, distributed",
     "DDP_impl delay_grad_reduce delay_param_gather distrib_opt_comm_mem_savings "
     "gtp_expert_remat_nccl_ub gtp_remat_nccl_ub "
     "gtp_remat_reduce_scatter_with_fp32_accumulation "
     "keep_fp8_transpose_cache_when_using_custom_fsdp max_seqlen_per_cp_rank "
     "megatron_fsdp_version scatter_gather_tensors_in_pipeline "
     "use_contiguous_buffers_in_local_ddp use_custom_fsdp use_pipelining"},
    {MGR_FIELD_INERT, "megatron/training/arguments.py of other releases, experimental",
     "disable_mamba_mem_eff_path"},
    {MGR_FIELD_INERT, "megatron/training/arguments.py of other releases, gpt2",
     "input_data_sizes_file"},
    {MGR_FIELD_INERT, "megatron/training/arguments.py of other releases, inference",
     "disable_chunked_prefill inference_dynamic_batching_active_buffer_size_gb "
     "inference_dynamic_batching_buffer_guaranteed_fraction "
     "inference_dynamic_batching_buffer_overflow_factor "
     "inference_dynamic_batching_chunk_size "
     "inference_dynamic_batching_cuda_graph_max_tokens "
     "inference_dynamic_batching_max_requests_override "
     "inference_dynamic_batching_max_tokens_override inference_flask_server_logging "
     "inference_max_batch_size inference_wandb_logging_step_interval "
     "initialize_socket_comms"},
    {MGR_FIELD_INERT, "megatron/training/arguments.py of other releases, initialization", "debug"},
    {MGR_FIELD_INERT, "megatron/training/arguments.py of other releases, kitchen quantization",
     "kitchen_config_file kitchen_recipe_number"},
    {MGR_FIELD_INERT, "megatron/training/arguments.py of other releases, learning rate",
     "data_impl mmap_warmup retriever_seq_length use_checkpoint_lr_scheduler"},
    {MGR_FIELD_INERT, "megatron/training/arguments.py of other releases, logging",
     "log_batch_size_to_tensorboard log_learning_rate_to_tensorboard log_zeros "
     "one_logger_entity otel_enabled otel_service_name otel_span_groups"},
    {MGR_FIELD_INERT, "megatron/training/arguments.py of other releases, mixed precision",
     "fp32_allreduce min_scale"},
    {MGR_FIELD_INERT, "megatron/training/arguments.py of other releases, network size",
     "embedding_weights_in_fp32 moe_frequency param_sharing_style"},
    {MGR_FIELD_INERT, "megatron/training/arguments.py of other releases, realm",
     "faiss_use_gpu ict_one_sent report_topk_accuracies"},
    {MGR_FIELD_INERT, "megatron/training/arguments.py of other releases, regularization",
     "end_wd muon_use_nesterov muon_use_syrk start_wd wd_incr_style"},
    {MGR_FIELD_INERT, "megatron/training/arguments.py of other releases, retro",
     "retro_attention_gate retro_cyclic_train_iters retro_encoder_attention_dropout "
     "retro_encoder_hidden_dropout retro_encoder_layers retro_num_neighbors "
     "retro_num_retrieved_chunks retro_project_dir retro_return_doc_ids "
     "retro_verify_neighbor_count retro_workdir"},
    {MGR_FIELD_INERT, "megatron/training/arguments.py of other releases, rl",
     "grpo_default_temperature grpo_default_top_p langrl_external_server "
     "langrl_inference_server_conversation_template langrl_inference_server_type "
     "rl_calculate_intra_group_similarity rl_durable_rollout_bank rl_generation_batch_size "
     "rl_max_inflight_requests rl_num_parallel_generation_batches "
     "rl_num_parallel_generations rl_offload_kv_cache_during_training "
     "rl_parallel_generation_tasks rl_remove_kv_cache_during_training rl_reset_cuda_graphs "
     "rl_rollout_bank_dir rl_rollout_bank_max_bytes rl_sequence_packing_bin_size"},
    {MGR_FIELD_INERT, "megatron/training/arguments.py of other releases, tokenizer",
     "legacy_tokenizer tiktoken_special_tokens tokenizer_hf_include_special_tokens "
     "tokenizer_hf_use_fast tokenizer_metadata tokenizer_special_tokens"},
    {MGR_FIELD_INERT, "megatron/training/arguments.py of other releases, training",
     "activations_checkpoint_method activations_checkpoint_num_layers "
     "checkpoint_num_layers distribute_checkpointed_activations enable_gloo_process_groups "
     "expert_parallel max_training_rank no_async_tensor_model_parallel_allreduce "
     "num_microbatches_in_minibatch scaled_masked_softmax_fusion "
     "scaled_upper_triang_masked_softmax_fusion use_legacy_models use_mcore "
     "use_mcore_models"},
    {MGR_FIELD_INERT, "megatron/training/arguments.py of other releases, transformer engine",
     "fp8_e4m3 fp8_hybrid"},
    {MGR_FIELD_INERT, "megatron/training/arguments.py of other releases, vit", "img_dim"},
    {MGR_FIELD_INERT, "megatron/training/arguments.py of other releases, evaluation",
     "cloze_eval eval_batch_size eval_hf eval_max_preds_per_seq eval_seq_length "
     "load_openai overlapping_eval strict_lambada"},
    {MGR_FIELD_INERT, "megatron/training/arguments.py of other releases, fp16 config",
     "fp32_embedding fp32_layernorm fp32_tokentypes"},
    {MGR_FIELD_INERT, "megatron/training/arguments.py of other releases, model config",
     "deep_init intermediate_size pretrained_bert"},
    {MGR_FIELD_INERT, "megatron/training/arguments.py of other releases, text generate",
     "genfile greedy num_samples recompute sample_input_file sample_output_file "
     "temperature top_k top_p"},
    {MGR_FIELD_INERT, "megatron/training/arguments.py of other releases, set after parsing",
     "consumed_train_bins cuda dynamic_loss_scale grpo_samples_per_iteration mtp_hsm "
     "retro_bert_tokenizer_type retro_bert_vocab_file retro_block_size retro_chunk_length "
     "retro_gpt_retrieved_length retro_neighbor_dirs retro_split_preprocessing "
     "rl_enforce_generation_order use_contiguous_buffers_in_ddp"},
    {MGR_FIELD_INERT, "validate_args of 0.19.2",
     "_is_global_batch_size_explicitly_specified use_layer_wise_distributed_optimizer"},
    {MGR_FIELD_INERT, "megatron/training, set at run time",
     "allow_transformer_engine class_token_present count dataset_impl do_test do_train "
     "do_valid eos_id num_floating_point_operations_so_far to_test"},
    {MGR_FIELD_INERT, "Megatron-DeepSpeed, set at run time", "consumed_train_tokens"},
};

/* One value or more, each of which changes what is computed, or the meaning of the tensors. */
static const mgr_field fields[] = {
    {"softmax_scale", MGR_FIELD_KEPT, "None", "another scale of attention scores",
     "transformer/dot_product_attention.py"},
    {"softmax_type", MGR_FIELD_KEPT, "vanilla", "another softmax in attention",
     "transformer/dot_product_attention.py"},
    {"window_size", MGR_FIELD_KEPT, "None", "sliding-window attention",
     "transformer/utils.py, is_layer_window_attention"},
    {"qk_l2_norm", MGR_FIELD_KEPT, "False", "L2 norms of q and k", "models/gpt/gpt_layer_specs.py"},
    {"rotary_interleaved", MGR_FIELD_KEPT, "False", "interleaved RoPE", "rope_utils.py"},
    {"no_rope_freq", MGR_FIELD_KEPT, "0|zeros", "layers without RoPE",
     "transformer_config.py; attention.py"},
    {"rope_type", MGR_FIELD_KEPT, "rope", "RoPE of another kind",
     "transformer_config.py, MLATransformerConfig"},
    {"activation_func_clamp_value", MGR_FIELD_KEPT, "None", "a clamped activation",
     "transformer/mlp.py, glu; also of SwiGLU"},
    {"glu_linear_offset", MGR_FIELD_KEPT, "0", "an offset in the gated unit",
     "transformer/mlp.py, glu"},
    {"layernorm_zero_centered_gamma", MGR_FIELD_KEPT, "False", "zero-centred norm weights",
     "extensions/transformer_engine.py"},
    {"apply_layernorm_1p", MGR_FIELD_KEPT, "False", "zero-centred norm weights",
     "arguments.py up to core 0.12"},
    {"apply_residual_connection_post_layernorm", MGR_FIELD_KEPT, "False", "post-norm residuals",
     "legacy/model/transformer.py"},
    {"use_mup", MGR_FIELD_KEPT, "False", "maximal-update scales",
     "gpt_model.py; language_module.py"},
    {"spec", MGR_FIELD_KEPT,
     "None|megatron.core.models.hybrid.hybrid_layer_specs|hybrid_stack_spec|"
     "megatron.core.models.mamba.mamba_layer_specs|mamba_stack_spec",
     "a layer spec of its own", "gpt_builders.py, hybrid_builders.py"},
    {"model_spec", MGR_FIELD_KEPT, "None", "a layer spec of its own",
     "arguments.py before core 0.7"},
    {"moe_router_topk_limited_devices", MGR_FIELD_NEUTRAL, "None",
     "a router with groups of experts", "transformer_config.py"},
    {"moe_router_load_balancing_type", MGR_FIELD_KEPT, "aux_loss|seq_aux_loss|global_aux_loss|none",
     "another routing", "transformer/moe/router.py"},
    {"moe_router_force_load_balancing", MGR_FIELD_KEPT, "False", "random routing",
     "transformer/moe/router.py"},
    {"moe_router_force_biased", MGR_FIELD_KEPT, "None", "random routing",
     "transformer/moe/router.py"},
    {"moe_expert_capacity_factor", MGR_FIELD_KEPT, "None", "tokens dropped over a capacity",
     "transformer/moe/moe_utils.py"},
    {"moe_expert_rank_capacity_factor", MGR_FIELD_KEPT, "None", "tokens dropped over a capacity",
     "transformer_config.py"},
    {"moe_apply_probs_on_input", MGR_FIELD_KEPT, "False", "router weights before the activation",
     "transformer/moe/experts.py"},
    {"moe_input_jitter_eps", MGR_FIELD_KEPT, "None", "noise in the router, in evaluation too",
     "transformer/moe/router.py"},
    {"logit_dtype", MGR_FIELD_INERT, NULL, NULL, "gpt_model.py: precision"},
    {"quick_geglu", MGR_FIELD_NEUTRAL, "False", "quick GEGLU", "transformer/mlp.py"},
    {"activation_func", MGR_FIELD_NEUTRAL, "None", "an activation of its own",
     "transformer_config.py"},
    {"multi_latent_attention", MGR_FIELD_NEUTRAL, "False", "multi-latent attention",
     "transformer/multi_latent_attention.py"},
    {"attention_output_gate", MGR_FIELD_NEUTRAL, "False", "gated attention",
     "transformer/attention.py"},
    {"experimental_attention_variant", MGR_FIELD_NEUTRAL, "None", "another attention",
     "transformer_config.py"},
    {"linear_attention_freq", MGR_FIELD_NEUTRAL, "None|0|zeros", "linear attention",
     "transformer_config.py"},
    {"moe_mlp_glu_interleave_size", MGR_FIELD_NEUTRAL, "None", "interleaved GLU rows",
     "transformer/moe/experts.py"},
    {"moe_shared_expert_glu_interleave_size", MGR_FIELD_NEUTRAL, "None", "interleaved GLU rows",
     "transformer/moe/shared_experts.py"},
    {"moe_latent_size", MGR_FIELD_NEUTRAL, "None|0", "latent experts",
     "transformer/moe/moe_layer.py"},
    {"moe_extended_tp", MGR_FIELD_NEUTRAL, "False", "experts split over all tensor-parallel ranks",
     "arguments.py up to core 0.8"},
    {"heterogeneous_layers_config_path", MGR_FIELD_NEUTRAL, "None", "heterogeneous layers",
     "transformer/heterogeneous"},
    {"heterogeneous_layers_config_encoded_json", MGR_FIELD_NEUTRAL, "None", "heterogeneous layers",
     "transformer/heterogeneous"},
    {"heterogeneous_block_specs", MGR_FIELD_NEUTRAL, "False", "heterogeneous layers",
     "transformer_config.py"},
    {"hybrid_layer_pattern", MGR_FIELD_SPLIT, NULL, NULL, "models/hybrid; see check_hybrid"},
    {"hybrid_override_pattern", MGR_FIELD_SPLIT, NULL, NULL, "its name up to core 0.16"},
    {"hybrid_attention_ratio", MGR_FIELD_NEUTRAL, "0", "hybrid layers",
     "arguments.py up to core 0.16"},
    {"hybrid_mlp_ratio", MGR_FIELD_NEUTRAL, "0", "hybrid layers", "arguments.py up to core 0.16"},
    {"is_hybrid_model", MGR_FIELD_SPLIT, NULL, NULL, "transformer_config.py"},
    {"mtp_num_layers", MGR_FIELD_NEUTRAL, "None|0", "multi-token prediction",
     "transformer/multi_token_prediction.py"},
    {"mtp_hybrid_override_pattern", MGR_FIELD_NEUTRAL, "None", "multi-token prediction",
     "models/hybrid"},
    {"retro_add_retriever", MGR_FIELD_NEUTRAL, "False", "a retriever", "models/retro"},
    {"num_unique_layers", MGR_FIELD_NEUTRAL, "None", "layers that share their parameters",
     "arguments.py of 2020"},
    {"model_type", MGR_FIELD_NEUTRAL, "ModelType(1)|ModelType.encoder_or_decoder",
     "an encoder and a decoder", "core/enums.py"},
};

#define N_GROUPS (sizeof groups / sizeof groups[0])
#define N_FIELDS (sizeof fields / sizeof fields[0])

/* Is `name` one of the words of `names`? */
static bool has_word(const char *names, const char *name)
{
    const size_t n = strlen(name);
    for (const char *at = names; n > 0 && (at = strstr(at, name)) != NULL; at += n)
        if ((at == names || at[-1] == ' ') && (at[n] == ' ' || at[n] == '\0'))
            return true;
    return false;
}

/* All names in order, made at the first question: args are many, and each is looked up. */
typedef struct entry {
    const char *name; /* of a group: ends at a space or the text's end */
    size_t len;
    uint16_t group, field; /* a field, or NO_FIELD and a group */
} entry;

#define MOST_NAMES 2048
#define NO_FIELD UINT16_MAX

static struct {
    entry list[MOST_NAMES];
    size_t n;
} sorted;

static int compare(const char *a, size_t na, const char *b, size_t nb)
{
    const int c = memcmp(a, b, na < nb ? na : nb);
    return c ? c : (na > nb) - (na < nb);
}

static int by_name(const void *x, const void *y)
{
    const entry *const a = x, *const b = y;
    return compare(a->name, a->len, b->name, b->len);
}

static void sort_names(void)
{
    for (size_t i = 0; i < N_FIELDS; i++)
        sorted.list[sorted.n++] = (entry){fields[i].name, strlen(fields[i].name), 0, (uint16_t)i};
    for (size_t g = 0; g < N_GROUPS; g++)
        for (const char *at = groups[g].names; *at; at += strspn(at, " ")) {
            const size_t len = strcspn(at, " ");
            assert(sorted.n < MOST_NAMES);
            sorted.list[sorted.n++] = (entry){at, len, (uint16_t)g, NO_FIELD};
            at += len;
        }
    qsort(sorted.list, sorted.n, sizeof sorted.list[0], by_name);
}

mgr_field mgr_megatron_field(const char *name)
{
    const entry wanted = {name, strlen(name), 0, 0};
    if (sorted.n == 0)
        sort_names();
    const entry *const e = bsearch(&wanted, sorted.list, sorted.n, sizeof sorted.list[0], by_name);
    if (!e)
        return (mgr_field){.name = name};
    if (e->field != NO_FIELD)
        return fields[e->field];
    return (mgr_field){
        .name = name, .rule = groups[e->group].rule, .source = groups[e->group].source};
}

const char *mgr_megatron_field_at(size_t idx, char *out, size_t size)
{
    if (sorted.n == 0)
        sort_names();
    if (idx >= sorted.n)
        return NULL;
    snprintf(out, size, "%.*s", (int)sorted.list[idx].len, sorted.list[idx].name);
    return out;
}

static bool is_zeros(const char *list)
{
    return strspn(list, "[](), 0.False") == strlen(list);
}

static bool is_empty(const char *list)
{
    return strcmp(list, "[]") == 0 || strcmp(list, "()") == 0 || strcmp(list, "{}") == 0;
}

bool mgr_attr_is_nothing(const mgr_attr *a)
{
    switch (a->kind) {
    case MGR_ATTR_NULL:
        return true;
    case MGR_ATTR_BOOL:
    case MGR_ATTR_INT:
        return a->i == 0;
    case MGR_ATTR_REAL:
        return a->r >= 0 && a->r <= 0; /* which a NaN is not */
    case MGR_ATTR_TEXT:
        return a->text[0] == '\0';
    case MGR_ATTR_LITERAL:
        return is_empty(a->text);
    case MGR_ATTR_SYMBOL:
    case MGR_ATTR_OTHER:
        break;
    }
    return false;
}

const char *mgr_attr_text(const mgr_attr *a, char *out, size_t size)
{
    switch (a->kind) {
    case MGR_ATTR_NULL:
        snprintf(out, size, "None");
        break;
    case MGR_ATTR_BOOL:
        snprintf(out, size, "%s", a->i ? "True" : "False");
        break;
    case MGR_ATTR_INT:
        snprintf(out, size, "%lld", (long long)a->i);
        break;
    case MGR_ATTR_REAL:
        snprintf(out, size, "%.9g", a->r);
        break;
    case MGR_ATTR_TEXT:
    case MGR_ATTR_LITERAL:
    case MGR_ATTR_SYMBOL:
        snprintf(out, size, "%s", a->text);
        break;
    case MGR_ATTR_OTHER:
        snprintf(out, size, "a %s", a->text);
        break;
    }
    return out;
}

/* The value of "True", "1" or "0.5"; false for words. */
static bool number_of(const char *word, double *out)
{
    char *end;
    *out = strcmp(word, "True") == 0 ? 1 : 0;
    if (strcmp(word, "True") == 0 || strcmp(word, "False") == 0)
        return true;
    *out = strtod(word, &end);
    return end != word && *end == '\0';
}

static bool is_one(const char *word, const mgr_attr *a)
{
    double number;
    const double value = a->kind == MGR_ATTR_REAL ? a->r : (double)a->i;
    switch (a->kind) {
    case MGR_ATTR_BOOL:
    case MGR_ATTR_INT:
    case MGR_ATTR_REAL:
        return number_of(word, &number) && value >= number && value <= number;
    case MGR_ATTR_TEXT:
        return strcmp(a->text, word) == 0 || (a->text[0] == '\0' && strcmp(word, "None") == 0);
    case MGR_ATTR_SYMBOL:
        return strcmp(a->text, word) == 0;
    case MGR_ATTR_LITERAL:
        return is_empty(a->text) || (strcmp(word, "zeros") == 0 && is_zeros(a->text));
    default:
        return a->kind == MGR_ATTR_NULL;
    }
}

/* Every quoted word of a list is one of `words`. */
static bool all_words(const char *list, const char *words)
{
    char spaced[256];
    const char *at = strchr(list, '\'');
    snprintf(spaced, sizeof spaced, "%s", words);
    for (char *bar = spaced; (bar = strchr(bar, '|')) != NULL;)
        *bar = ' ';
    for (; at; at = strchr(at, '\'')) {
        char word[64];
        const size_t n = strcspn(++at, "'");
        snprintf(word, sizeof word, "%.*s", (int)n, at);
        if (n >= sizeof word || !has_word(spaced, word))
            return false;
        at += n + (at[n] == '\'');
    }
    return strchr(list, '\'') != NULL;
}

bool mgr_megatron_is_neutral(const mgr_field *field, const mgr_attr *value)
{
    char word[64];
    if (value->kind == MGR_ATTR_NULL)
        return true;
    for (const char *at = field->neutral; *at;) {
        const size_t n = strcspn(at, "|");
        snprintf(word, sizeof word, "%.*s", (int)n, at);
        if (is_one(word, value))
            return true;
        at += n + (at[n] == '|');
    }
    return value->kind == MGR_ATTR_LITERAL && all_words(value->text, field->neutral);
}
