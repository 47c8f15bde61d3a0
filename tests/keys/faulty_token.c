/* A PKCS#11 library in front of a real one (REAL, by -D), which answers wrongly or late when told.
 * Functions are known by their place in CK_FUNCTION_LIST (PKCS#11 2.40), C_Initialize being 0. */
#include <dlfcn.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

typedef unsigned long word;
typedef word (*call)(word, word, word, word, word, word);

enum { FUNCTIONS = 68, GET_SLOT_INFO = 5, GET_TOKEN_INFO = 6 };
enum { OK = 0, GENERAL_ERROR = 5, TOKEN_PRESENT = 1 };
/* CK_TOKEN_INFO: label 32, manufacturer 32, model 16, serial 16, then the flags.
 * CK_SLOT_INFO: description 64, manufacturer 32, then the flags. */
enum { FLAGS_AT = 96 };

static struct { unsigned char version[2]; void *functions[FUNCTIONS]; } list;
static void *real[FUNCTIONS];

/* What the test sets. */
static volatile word answers[FUNCTIONS];   /* CKR instead of a call */
static volatile int how_often[FUNCTIONS];  /* so many times; below 0 for ever */
static volatile int held[FUNCTIONS];       /* a call does not return while this is set */
static volatile int calls[FUNCTIONS];
static volatile word more_flags;
static volatile int is_hidden;

void fault_set(int function, word answer, int times) { answers[function] = answer; how_often[function] = times; }
void fault_hold(int function, int on) { held[function] = on; }
void fault_flags(word flags) { more_flags = flags; }
void fault_hide(int on) { is_hidden = on; }
int fault_calls(int function) { return calls[function]; }

void fault_clear(void)
{
    memset((void *)answers, 0, sizeof answers);
    memset((void *)how_often, 0, sizeof how_often);
    memset((void *)held, 0, sizeof held);
    memset((void *)calls, 0, sizeof calls);
    more_flags = 0;
    is_hidden = 0;
}

static word go(int function, word a, word b, word c, word d, word e, word f)
{
    __sync_fetch_and_add(&calls[function], 1);
    while (held[function])
        usleep(1000);
    if (how_often[function]) {
        if (how_often[function] > 0)
            how_often[function]--;
        return answers[function];
    }
    word result = ((call)real[function])(a, b, c, d, e, f);
    if (function == GET_TOKEN_INFO && result == OK)
        *(word *)((char *)b + FLAGS_AT) |= more_flags;
    /* As OpenSC after a removal: the slot is empty, and the token is told as it was. */
    if (function == GET_SLOT_INFO && result == OK && is_hidden)
        *(word *)((char *)b + FLAGS_AT) &= ~(word)TOKEN_PRESENT;
    return result;
}

#define WRAP(n) static word wrap_##n(word a, word b, word c, word d, word e, word f) { return go(n, a, b, c, d, e, f); }
WRAP(0) WRAP(1) WRAP(4) WRAP(5) WRAP(6) WRAP(8) WRAP(12) WRAP(14) WRAP(18)
WRAP(24) WRAP(26) WRAP(27) WRAP(28) WRAP(42) WRAP(43)
#define PUT(n) list.functions[n] = (void *)wrap_##n;

word C_GetFunctionList(void **result)
{
    void *handle = dlopen(REAL, RTLD_NOW | RTLD_LOCAL);
    if (!handle)
        return GENERAL_ERROR;
    word (*get)(void **) = (word (*)(void **))dlsym(handle, "C_GetFunctionList");
    void *table = NULL;
    if (!get || get(&table) != OK)
        return GENERAL_ERROR;
    memcpy(&list, table, sizeof list);
    memcpy(real, list.functions, sizeof real);
    PUT(0) PUT(1) PUT(4) PUT(5) PUT(6) PUT(8) PUT(12) PUT(14) PUT(18)
    PUT(24) PUT(26) PUT(27) PUT(28) PUT(42) PUT(43)
    *result = &list;
    return OK;
}
