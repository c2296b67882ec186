/*
 * Where the files of a DeepSpeed checkpoint are: a run's folder with `latest`, moe-recipes' with
 * `latest_iteration.txt` and iter_NNNNNNN/model_optimizer, or the folder of one step.
 */
#ifndef MGR_FORM_DEEPSPEED_ROOT_H
#define MGR_FORM_DEEPSPEED_ROOT_H

#include <stdbool.h>
#include <stdint.h>

#include "form/source.h"
#include "mgr/model.h"

#define MGR_DEEPSPEED_LEVELS 3 /* of folders, from source.path down to the step's */

/* Do the names in `path`, or in the folder that it says is the latest, look like one? Local. */
bool mgr_deepspeed_is(const char *path);

/* The folder of the step that `iteration` ("latest" or a number) means. MGR_ERR_NOT_FOUND,
 * MGR_ERR_FORMAT. Local. */
int mgr_deepspeed_folder(const char *path, const char *iteration, mgr_arena *arena,
                         const char **folder, mgr_err *err) MGR_NODISCARD;

/* What a file's name says. */
typedef struct mgr_zero_name {
    bool optimizer;   /* or the model's */
    bool partitioned; /* the model's: of one rank of ZeRO-3, or else of all */
    uint32_t rank, model_rank;
} mgr_zero_name;

bool mgr_deepspeed_name(const char *name, mgr_zero_name *out);

/* Of a path that ends in zero/NAME/fp32.pt, exp_avg.pt or exp_avg_sq.pt, which is what a universal
 * checkpoint has of a parameter: NAME into the arena; NULL of any other. Local. */
int mgr_deepspeed_param(const char *path, mgr_arena *arena, const char **name,
                        mgr_err *err) MGR_NODISCARD;
/* The plane that is in such a file; MGR_PLANE_COUNT of any other. Pure. */
mgr_plane mgr_deepspeed_plane(const char *path);
/* Is it the file of a universal checkpoint with the settings of the optimizer, or that with the
 * steps of a parameter? Pure. */
bool mgr_deepspeed_is_settings(const char *path);
bool mgr_deepspeed_is_step(const char *path);

/* Append the files of `folder`: those of the model by rank, then the optimizer's. One that is
 * missing, there twice, or of a kind that cannot be read is refused by name. Of a universal
 * checkpoint: the model's, then one for each parameter, by name; with `moments` those of the
 * moments that there are, the settings and the first parameter's steps. Local. */
int mgr_deepspeed_files(const char *folder, bool moments, mgr_arena *arena, mgr_source_files *files,
                        mgr_err *err) MGR_NODISCARD;

#endif
