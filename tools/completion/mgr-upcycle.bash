# Completion of mgr-upcycle, mgr-inspect, mgr-synth and mgr-bench for bash.
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
        mgr-upcycle) options="--dry-run --force --resume --journal --set --quiet --verbose --progress --simd" ;;
        mgr-inspect) options="--json --summary" ;;
        mgr-synth)
            options="--layers --hidden --ffn --heads --kv-heads --vocab --tp --pp --seed --dtype
                --names --format --make-vocab-size-divisible-by --tied --force --quiet"
            ;;
        mgr-bench) options="--size --scratch --rounds" ;;
    esac
    COMPREPLY=()
    case $previous in
        --simd) _mgr_words "scalar avx2 avx512 neon" "$current" ;;
        --dtype) _mgr_words "bf16 fp16 fp32" "$current" ;;
        --names) _mgr_words "te local" "$current" ;;
        --scratch) _mgr_paths -d "$current" ;;
        --set)
            compopt -o nospace 2>/dev/null
            _mgr_words "mode= memory_per_rank= source.path= source.format= source.iteration=
                source.tokenizer= model.num_layers= model.hidden_size= model.ffn_hidden_size=
                model.num_attention_heads= model.num_query_groups= model.kv_channels=
                model.vocab_size= model.max_position_embeddings= model.tensor_parallel=
                model.pipeline_parallel= model.norm_epsilon= model.rotary_base= model.bos_token_id=
                model.eos_token_id= upcycle.method= upcycle.experts= upcycle.top_k= upcycle.ratio=
                upcycle.seed= upcycle.index_sets= upcycle.shuffle= upcycle.router=
                upcycle.router_std= upcycle.noise_std=
                target.path= target.format= target.expert_parallel= target.tensor_parallel=
                target.pipeline_parallel= target.make_vocab_size_divisible_by= target.names=
                target.iteration= target.dtype= target.max_shard_size=" "$current"
            ;;
        --progress | --size | --rounds | --layers | --hidden | --ffn | --heads | --kv-heads | --vocab | \
            --tp | --pp | --seed | --make-vocab-size-divisible-by) ;;
        *)
            if [[ $current == -* ]]; then
                _mgr_words "$options --help --version" "$current"
            else
                _mgr_paths -f "$current"
            fi
            ;;
    esac
}

complete -F _mgr mgr-upcycle mgr-inspect mgr-synth mgr-bench
