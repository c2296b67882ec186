/* For LD_PRELOAD: an MPI whose end never comes, as MPICH 4.0 between hosts now and then has it. */
#include <unistd.h>

int MPI_Finalize(void);

int MPI_Finalize(void)
{
    for (;;)
        pause();
}
