# Completion of mgr-upcycle, mgr-inspect, mgr-verify, mgr-synth and mgr-bench for bash.
# Use it by `. tools/completion/mgr-upcycle.bash`; an installation puts it where bash looks.
# shellcheck shell=bash

_mgr_words() {
    mapfile -t COMPREPLY < <(compgen -W "$1" -- "$2")
}

_mgr_paths() {
    compopt -o filenames 2>/dev/null
    mapfile -t COMPREPLY < <(compgen "$1" -- "$2")
}

_mgr() {
    local tool=${1##*/} current=${2-} previous=${3-} options=
    case $tool in
        mgr-upcycle) options="--dry-run --ranks --bandwidth --force --verify --json --resume --discard --journal --set --quiet --verbose --progress
            --get --simd --unit-bytes --log-json --schema" ;;
        mgr-inspect) options="--json --summary" ;;
        mgr-verify) options="--json --quiet" ;;
        mgr-synth)
            options="--layers --hidden --ffn --heads --kv-heads --vocab --max-positions --positions
                --norm --activation --qkv-bias --bias --qk-norm --tied --experts --top-k --expert-ffn
                --tp --pp --vpp --ep --etp --make-vocab-size-divisible-by --seed --dtype --format
                --names --force --quiet"
            ;;
        mgr-bench) options="--size --scratch --rounds" ;;
    esac
    COMPREPLY=()
    case $previous in
        --simd) _mgr_words "scalar avx2 avx512 neon" "$current" ;;
        --dtype) _mgr_words "bf16 fp16 fp32" "$current" ;;
        --names) _mgr_words "auto te local per-expert fused" "$current" ;;
        --format) _mgr_words "megatron-torch megatron-dist huggingface moe-recipes mixtral hdf5" "$current" ;;
        --norm) _mgr_words "rmsnorm layernorm" "$current" ;;
        --activation) _mgr_words "swiglu geglu gelu squared-relu" "$current" ;;
        --positions) _mgr_words "rope learned" "$current" ;;
        --scratch) _mgr_paths -d "$current" ;;
        --set)
            compopt -o nospace 2>/dev/null
            _mgr_words "mode= memory_per_rank= source.path= source.format= source.iteration=
                source.tokenizer= source.unknown= source.allow_nonfinite= source.sha256= model.num_layers= model.hidden_size= model.ffn_hidden_size=
                model.num_attention_heads= model.num_query_groups= model.kv_channels=
                model.vocab_size= model.max_position_embeddings= model.moe_router_topk=
                model.tensor_parallel= model.pipeline_parallel= model.norm_epsilon= model.rotary_base= model.bos_token_id=
                model.eos_token_id= upcycle.method= upcycle.experts= upcycle.top_k= upcycle.expert_width= upcycle.slices= upcycle.cut= upcycle.scale= upcycle.router_pre_softmax= upcycle.router_file= upcycle.experts_from= upcycle.ratio=
                upcycle.seed= upcycle.index_sets= upcycle.shuffle= upcycle.router=
                upcycle.router_std= upcycle.noise_std= upcycle.moe_layer_freq= upcycle.encoder_moe_layer_freq=
                target.path= target.format= target.expert_parallel= target.tensor_parallel=
                target.pipeline_parallel= target.expert_tensor_parallel= target.virtual_pipeline=
                target.first_stage_layers= target.last_stage_layers=
                target.make_vocab_size_divisible_by= target.names= target.expert_names=
                target.dist_keys=
                target.iteration= target.dtype= target.class= target.max_shard_size= target.sha256= target.compression= target.config=" "$current"
            ;;
        --progress | --ranks | --unit-bytes | --size | --rounds | --layers | --hidden | --ffn | --heads | --kv-heads | --vocab | \
            --max-positions | --experts | --top-k | --expert-ffn | --tp | --pp | --vpp | --ep | --etp | \
            --seed | --make-vocab-size-divisible-by) ;;
        *)
            if [[ $current == -* ]]; then
                _mgr_words "$options --help --version" "$current"
            else
                _mgr_paths -f "$current"
            fi
            ;;
    esac
}

complete -F _mgr mgr-upcycle mgr-inspect mgr-verify mgr-synth mgr-bench
