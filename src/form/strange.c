#include "form/strange.h"

#include <fnmatch.h>
#include <string.h>

#include "core/str.h"
#include "io/file.h"

#define HEAD 64

/* ---- folders, by the names in them ---- */

typedef struct sight {
    const char *pattern; /* of a name in the folder */
    const char *unless;  /* this is there, too; or NULL */
    const char *what;
    const char *hint;
} sight;

/* In this order: what says most comes first. Sources: huggingface_hub's file_download.py,
 * transformers' trainer.py, DeepSpeed's zero_to_fp32.py, peft's save_pretrained, NeMo's
 * save_restore_connector.py, Meta's llama repository, llama.cpp. */
static const sight sights[] = {
    {"snapshots", NULL, "a model's folder in the cache of the Hugging Face hub",
     "give a folder below its 'snapshots', which has config.json"},
    {"models--*", NULL, "the cache of the Hugging Face hub",
     "give a folder models--OWNER--NAME/snapshots/REVISION in it"},
    {"adapter_config.json", "config.json", "a PEFT adapter (LoRA) without its model",
     "merge it first: PeftModel.from_pretrained(base, adapter).merge_and_unload()"},
    {"*zero_pp_rank_*", NULL, "a file of a DeepSpeed checkpoint", "give the folder that holds it"},
    {"global_step[0-9]*", "config.json", "a DeepSpeed run without its file 'latest'",
     "give the folder of a step, such as global_step1000"},
    {"zero_to_fp32.py", "config.json", "a DeepSpeed run without its steps",
     "give the folder of a step: one with *_model_states.pt and *_optim_states.pt"},
    {"__[0-9]*_[0-9]*.distcp", ".metadata", "shards of torch.distributed.checkpoint",
     "they need the .metadata that was saved with them: fetch it, too"},
    {"iter_[0-9]*", NULL, "a Megatron run without an iteration that is whole",
     "an iteration has mp_rank_* folders, or metadata.json and .metadata"},
    {"checkpoint-[0-9]*", "config.json", "the output of a Trainer, with checkpoints below it",
     "give one of them, such as checkpoint-1000"},
    {"consolidated.*.pth", "config.json", "a model as Meta published it",
     "convert it first: transformers' convert_llama_weights_to_hf.py"},
    {"*.nemo", "config.json", "a NeMo archive", "convert it first with NeMo's own scripts"},
    {"model_weights", "config.json", "an unpacked NeMo checkpoint",
     "convert it first with NeMo's own scripts"},
    {"*.gguf", NULL, "a GGUF file of llama.cpp, with quantised weights",
     "take the model that it was made from"},
};

/* In a folder that has config.json, but no weights under their names. */
static const sight strangers[] = {
    {"*.gguf", NULL, "a GGUF file of llama.cpp, with quantised weights",
     "take the model that it was made from"},
    {"adapter_model.*", NULL, "a PEFT adapter (LoRA) without its model",
     "merge it first: PeftModel.from_pretrained(base, adapter).merge_and_unload()"},
    {"global_step[0-9]*", NULL, "a DeepSpeed run without its file 'latest'",
     "give the folder of a step, such as global_step1000, with source.config for this folder"},
    {"consolidated.*", NULL, "weights as their maker published them (consolidated.*)",
     "take the model in the form that transformers has"},
    {"checkpoint-[0-9]*", NULL, "the output of a Trainer, with checkpoints below it",
     "give one of them, such as checkpoint-1000"},
    {"flax_model*.msgpack", NULL, "weights of Flax", "save them from transformers with torch"},
    {"tf_model*.h5", NULL, "weights of TensorFlow", "save them from transformers with torch"},
    {"model-[0-9]*-of-[0-9]*.safetensors", NULL, "shards without model.safetensors.index.json",
     "fetch the index, too"},
    {"pytorch_model-[0-9]*-of-[0-9]*.bin", NULL, "shards without pytorch_model.bin.index.json",
     "fetch the index, too"},
    {"shard-[0-9]*.safetensors", NULL, "shards of torch.distributed.checkpoint",
     "consolidate them first: torch's consolidate_hf_safetensors"},
    {"*.safetensors", NULL, "safetensors under a name of their own",
     "call the file model.safetensors"},
    {"*.bin", NULL, "a .bin under a name of its own", "call the file pytorch_model.bin"},
    {"*.pt*", NULL, "a file of torch under a name of its own",
     "if it holds the state dict alone, call it pytorch_model.bin"},
};

static const char *first_match(const char *pattern, const char *const *names, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (fnmatch(pattern, names[i], FNM_PERIOD) == 0)
            return names[i];
    return NULL;
}

static const sight *find_sight(const sight *table, size_t rows, const char *const *names, size_t n,
                               const char **name)
{
    for (size_t i = 0; i < rows; i++)
        if ((*name = first_match(table[i].pattern, names, n)) &&
            !(table[i].unless && first_match(table[i].unless, names, n)))
            return &table[i];
    return NULL;
}

/* What the names in `directory` show, or NULL; *name is the one that shows it. */
static const sight *look(const sight *table, size_t rows, const char *directory, mgr_arena *arena,
                         const char **name)
{
    mgr_err ignored = MGR_ERR_INIT;
    const char **names;
    size_t n = 0;
    if (!mgr_is_dir(directory) || mgr_list_dir(directory, arena, &names, &n, &ignored) != MGR_OK)
        return NULL;
    return find_sight(table, rows, names, n, name);
}

static const char *base_name(const char *path)
{
    const char *const slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static int fail_sight(const char *path, const sight *s, const char *name, mgr_err *err)
{
    char shown[128];
    mgr_fail(err, MGR_ERR_UNSUPPORTED, "'%s' is %s ('%s'), no checkpoint that can be read", path,
             s->what, mgr_printable(name, strlen(name), shown, sizeof shown));
    return mgr_hint(err, "%s", s->hint);
}

/* A path that is a file. */
static int strange_single(const char *path, mgr_err *err)
{
    const char *name = base_name(path);
    const sight *const s =
        find_sight(sights, sizeof sights / sizeof sights[0], (const char *const[]){name}, 1, &name);
    if (s)
        return fail_sight(path, s, name, err);
    mgr_fail(err, MGR_ERR_NOT_FOUND, "'%s' is a file; a checkpoint is a folder", path);
    return mgr_hint(err, "give the folder that holds it and its config.json");
}

int mgr_strange_path(const char *path, mgr_err *err)
{
    mgr_arena arena = {0};
    const char *name;
    if (mgr_path_exists(path) && !mgr_is_dir(path))
        return strange_single(path, err);
    const sight *const s = look(sights, sizeof sights / sizeof sights[0], path, &arena, &name);
    if (s) {
        fail_sight(path, s, name, err);
    } else {
        mgr_fail(err, MGR_ERR_NOT_FOUND, "no checkpoint of a known format at '%s'", path);
        mgr_hint(err, "source.path is a folder with latest_checkpointed_iteration.txt, one "
                      "iteration's folder, or a Hugging Face folder with config.json");
    }
    mgr_arena_clear(&arena);
    return err->code;
}

int mgr_strange_folder(const char *directory, mgr_err *err)
{
    mgr_arena arena = {0};
    const char *name;
    const sight *const s =
        look(strangers, sizeof strangers / sizeof strangers[0], directory, &arena, &name);
    char shown[128];
    mgr_fail(
        err, MGR_ERR_NOT_FOUND,
        "no model.safetensors, pytorch_model.bin, fp32_model.bin or index of one in '%s'%s%s%s%s%s",
        directory, s ? ", but " : "", s ? s->what : "", s ? " ('" : "",
        s ? mgr_printable(name, strlen(name), shown, sizeof shown) : "", s ? "')" : "");
    if (s)
        mgr_hint(err, "%s", s->hint);
    mgr_arena_clear(&arena);
    return err->code;
}

/* ---- files, by their first bytes ---- */

static const struct {
    const char *head;
    size_t len;
    const char *what, *hint;
} heads[] = {
    {"version https://git-lfs", 23, "a git-lfs pointer, not the file that it stands for",
     "fetch the file: git lfs pull"},
    {"<!DOCTYPE", 9, "a web page", "download the file itself, not the page about it"},
    {"<!doctype", 9, "a web page", "download the file itself, not the page about it"},
    {"<html", 5, "a web page", "download the file itself, not the page about it"},
    {"<?xml", 5, "an XML document, as a server's error is", "download the file again"},
    {"Entry not found", 15, "the hub's word for a file that is not there", "download it again"},
    {"GGUF", 4, "a GGUF file of llama.cpp, with quantised weights",
     "take the model that it was made from"},
    {"\x1f\x8b", 2, "an archive (gzip)", "unpack it first"},
    {"\x89HDF", 4, "an HDF5 file, as Keras and TensorFlow write",
     "save the model from transformers with torch"},
};

int mgr_strange_file(const mgr_reader *reader, mgr_err *err)
{
    char head[HEAD] = {0};
    const size_t len = reader->size < HEAD ? (size_t)reader->size : HEAD;
    if (reader->size == 0) {
        mgr_fail(err, MGR_ERR_FORMAT, "'%s' is empty", reader->name);
        return mgr_hint(err, "download or copy it again");
    }
    MGR_TRY(mgr_reader_read(reader, 0, head, len, err));
    for (size_t i = 0; i < sizeof heads / sizeof heads[0]; i++) {
        if (len < heads[i].len || memcmp(head, heads[i].head, heads[i].len) != 0)
            continue;
        mgr_fail(err, MGR_ERR_FORMAT, "'%s' is %s", reader->name, heads[i].what);
        return mgr_hint(err, "%s", heads[i].hint);
    }
    if (mgr_has_suffix(reader->name, ".safetensors") && memcmp(head, "PK\x03\x04", 4) == 0) {
        mgr_fail(err, MGR_ERR_FORMAT, "'%s' is a file of torch under another name", reader->name);
        return mgr_hint(err, "call it pytorch_model.bin");
    }
    return MGR_OK;
}

/* ---- tensors, by their names, shapes and types ---- */

static const struct {
    const char *prefix, *what, *hint;
} wrappers[] = {
    {"_orig_mod.", "torch.compile", "save the state dict of model._orig_mod"},
    {"_fsdp_wrapped_module.", "FSDP", "save a full state dict of the model inside"},
    {"base_model.model.", "PEFT", "merge it first: merge_and_unload()"},
};

static bool has_name(const mgr_catalogue *cat, const char *prefix, const char *name)
{
    for (size_t i = 0; i < cat->n_stored; i++)
        if (mgr_has_prefix(cat->stored[i].name, prefix) &&
            strcmp(cat->stored[i].name + strlen(prefix), name) == 0)
            return true;
    return false;
}

static int check_names(const mgr_catalogue *cat, mgr_err *err)
{
    static const char *const embeddings[] = {"model.embed_tokens.weight", "embed_tokens.weight"};
    if (has_name(cat, "", embeddings[0]))
        return MGR_OK;
    for (size_t i = 0; i < sizeof wrappers / sizeof wrappers[0]; i++)
        for (size_t k = 0; k < 2; k++) {
            if (!has_name(cat, wrappers[i].prefix, embeddings[k]))
                continue;
            mgr_fail(err, MGR_ERR_UNSUPPORTED, "the names of the tensors begin with '%s', of %s",
                     wrappers[i].prefix, wrappers[i].what);
            return mgr_hint(err, "%s", wrappers[i].hint);
        }
    if (has_name(cat, "", embeddings[1])) {
        mgr_fail(err, MGR_ERR_UNSUPPORTED,
                 "the names of the tensors do not begin with 'model.': a model without its head");
        return mgr_hint(err, "save it as a ...ForCausalLM");
    }
    return MGR_OK;
}

/* A matrix without rows or columns may be one of a shared expert that has no neurons. */
static int check_shape(const mgr_catalogue *cat, const mgr_stored *s, mgr_err *err)
{
    char shown[128];
    if (s->ndim != 1 || s->shape[0] > 0)
        return MGR_OK;
    mgr_fail(err, MGR_ERR_UNSUPPORTED,
             "tensor '%s' in '%s' is empty, as DeepSpeed ZeRO-3 leaves it in a shell",
             mgr_printable(s->name, strlen(s->name), shown, sizeof shown),
             cat->files[s->file].path);
    return mgr_hint(err, "read the run's own files: source.format: deepspeed, and source.path the "
                         "folder of a step");
}

static int check_type(const mgr_catalogue *cat, const mgr_stored *s, mgr_err *err)
{
    char shown[128];
    if (mgr_dtype_is_weight(s->dtype))
        return MGR_OK;
    const bool wide = s->dtype == MGR_DTYPE_F64;
    mgr_fail(err, MGR_ERR_UNSUPPORTED, "tensor '%s' in '%s' is %s: %s, which is not supported",
             mgr_printable(s->name, strlen(s->name), shown, sizeof shown), cat->files[s->file].path,
             mgr_dtype_name(s->dtype),
             wide ? "double precision" : "a quantised weight, or none at all");
    return mgr_hint(err, wide ? "save the model as float32"
                              : "take the model that it was made from, in bfloat16");
}

int mgr_strange_tensors(const mgr_catalogue *cat, mgr_err *err)
{
    MGR_TRY(check_names(cat, err));
    for (size_t i = 0; i < cat->n_stored; i++) {
        MGR_TRY(check_shape(cat, &cat->stored[i], err));
        MGR_TRY(check_type(cat, &cat->stored[i], err));
    }
    return MGR_OK;
}
