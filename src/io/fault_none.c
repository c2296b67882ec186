#include "io/fault.h"

int mgr_fault(const char *call)
{
    (void)call;
    return 0;
}

uint32_t mgr_fault_nodes(void)
{
    return 0;
}

void mgr_fault_set_rank(int rank)
{
    (void)rank;
}
