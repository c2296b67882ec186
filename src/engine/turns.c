/* Buffers that take turns: engine/engine.h. */
#include "core/mem.h"
#include "engine/engine.h"

int mgr_turns_init(mgr_turns *turns, uint32_t n, uint64_t bytes, mgr_err *err)
{
    assert(n > 0 && n <= MGR_MOST_TURNS);
    *turns = (mgr_turns){.bytes = bytes};
    for (; turns->n < n; turns->n++)
        MGR_TRY(mgr_alloc_aligned(&turns->all[turns->n], bytes, err));
    turns->at = turns->all[0];
    return MGR_OK;
}

void mgr_turns_clear(mgr_turns *turns)
{
    for (uint32_t i = 0; i < turns->n; i++)
        mgr_free_aligned(turns->all[i]);
    *turns = (mgr_turns){0};
}

void mgr_turns_next(mgr_turns *turns, mgr_write_behind *behind)
{
    turns->now = turns->now + 1 < turns->n ? turns->now + 1 : 0;
    turns->at = turns->all[turns->now];
    mgr_write_behind_wait(behind, turns->at, turns->bytes);
}
