/* --version: enough for a report of a mistake. */
#include <stdio.h>

#include "cli/cli.h"
#include "fmt/h5.h"
#include "mgr/rng.h"
#include "mgr/version.h"

/* Made in each build: tools/cmake/commit.cmake. */
extern const char mgr_commit[];

void mgr_cli_about(const char *name)
{
    char library[160];
    printf("%s %s\n", name, MGR_VERSION);
    printf("commit  %s\n", mgr_commit);
    printf("MPI     %s\n", mgr_comm_library(library, sizeof library));
    printf("HDF5    %s\n", mgr_h5_library(library, sizeof library));
    printf("CPU    ");
    for (int s = 0; s < MGR_SIMD_COUNT; s++)
        if (mgr_simd_available((mgr_simd)s))
            printf(" %s%s", mgr_simd_name((mgr_simd)s),
                   (mgr_simd)s == mgr_simd_current() ? " (used)" : "");
    printf("\n");
}
