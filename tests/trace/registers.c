// SPDX-License-Identifier: MIT
/*
 * Calls probe functions of stubs with a pattern in every register and above the call, and looks
 * whether all of it is there afterwards.  Knows nothing of tracers: test_registers.py brings them.
 *
 *     registers STUB SYMBOL [STUB SYMBOL]...      two threads, until a line comes on stdin
 *
 * Prints "calls N wrong N leaf N": wrong counts calls of stubs after which anything differed, leaf
 * counts the same for `leaf`, a function of the kind that must not hold a 5-byte site.
 */
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define FRAME 17

struct state {
    uint64_t gp[15];  /* rax rbx rcx rdx rsi rdi rbp r8-r15 */
    uint64_t flags;
    unsigned char xmm[16][16];
    uint64_t frame[FRAME];  /* right above the return address */
};

#define REGISTERS(op) \
    op(1, rbx) op(2, rcx) op(3, rdx) op(4, rsi) op(5, rdi) op(6, rbp) op(7, r8) op(8, r9) \
    op(9, r10) op(10, r11) op(11, r12) op(12, r13) op(13, r14) op(14, r15)
#define VECTORS(op) \
    op(0) op(1) op(2) op(3) op(4) op(5) op(6) op(7) \
    op(8) op(9) op(10) op(11) op(12) op(13) op(14) op(15)
#define LOAD(i, name) "mov " #i "*8(%rax), %" #name "\n"
#define STORE(i, name) "mov %" #name ", " #i "*8(%rax)\n"
#define LOAD_VECTOR(i) "movdqu 128+" #i "*16(%rax), %xmm" #i "\n"
#define STORE_VECTOR(i) "movdqu %xmm" #i ", 128+" #i "*16(%rax)\n"

void call_with(void *function, const struct state *in, struct state *out);
__asm__(
    ".text\n.globl call_with\n.type call_with, @function\ncall_with:\n"
    "push %rbx\npush %rbp\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "push %rdi\npush %rdx\n"
    "sub $136, %rsp\n"
    "mov %rsi, %rax\nlea 384(%rax), %rsi\nmov %rsp, %rdi\nmov $17, %ecx\ncld\nrep movsq\n"
    VECTORS(LOAD_VECTOR)
    "push 120(%rax)\npopfq\n"
    REGISTERS(LOAD) "mov (%rax), %rax\n"
    "call *144(%rsp)\n"
    "pushfq\npush %rax\nmov 152(%rsp), %rax\n"
    REGISTERS(STORE) VECTORS(STORE_VECTOR)
    "pop (%rax)\npop 120(%rax)\n"
    "lea 384(%rax), %rdi\nmov %rsp, %rsi\nmov $17, %ecx\ncld\nrep movsq\n"
    "add $152, %rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbp\npop %rbx\n"
    "ret\n.size call_with, . - call_with\n");

/* Fills its red zone with `pattern`, passes a 5-byte nop, returns how many words differ. */
uint64_t leaf(uint64_t pattern);
__asm__(
    ".globl leaf\n.type leaf, @function\nleaf:\n"
    "mov $-16, %rcx\n1: mov %rdi, (%rsp,%rcx,8)\ninc %rcx\njnz 1b\n"
    "jmp leaf_site\n.size leaf, . - leaf\n"
    ".globl leaf_site\n.type leaf_site, @function\nleaf_site:\n"
    ".byte 0x0f, 0x1f, 0x44, 0x00, 0x00\n"
    "xor %eax, %eax\nmov $-16, %rcx\n"
    "2: cmp %rdi, (%rsp,%rcx,8)\nje 3f\ninc %rax\n3: inc %rcx\njnz 2b\n"
    "ret\n.size leaf_site, . - leaf_site\n");

static volatile int ended;
static void *functions[8];
static int count;

struct result {
    unsigned long calls, wrong, leaf;
    uint64_t seed;
};

static uint64_t next(uint64_t *seed)
{
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return *seed ^ *seed >> 29;
}

static void *run(void *argument)
{
    struct result *result = argument;
    uint64_t seed = result->seed;
    /* CF PF AF ZF SF OF by chance; bit 1 and IF are always set in user space. */
    const uint64_t chance = 0x8d5, always = 0x202;
    while (!ended) {
        struct state in, out;
        uint64_t *words = (uint64_t *)&in;
        for (size_t i = 0; i < sizeof in / 8; i++)
            words[i] = next(&seed);
        in.flags = (next(&seed) & chance) | always;
        for (int i = 0; i < count; i++) {
            memset(&out, 0, sizeof out);
            call_with(functions[i], &in, &out);
            result->wrong += memcmp(&in, &out, sizeof in) != 0;
            result->calls++;
        }
        result->leaf += leaf(next(&seed)) != 0;
    }
    return NULL;
}

int main(int argc, char **argv)
{
    for (int i = 1; i + 1 < argc && count < 8; i += 2) {
        void *stub = dlopen(argv[i], RTLD_NOW);
        functions[count] = stub ? dlsym(stub, argv[i + 1]) : NULL;
        if (functions[count++] == NULL) {
            fprintf(stderr, "%s\n", dlerror());
            return 1;
        }
    }
    struct result results[2] = {{.seed = 7}, {.seed = 11}};
    pthread_t threads[2];
    for (int i = 0; i < 2; i++)
        pthread_create(&threads[i], NULL, run, &results[i]);
    puts("STARTED!");
    fflush(stdout);
    getchar();
    ended = 1;
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    printf("calls %lu wrong %lu leaf %lu\nDONE!\n", results[0].calls + results[1].calls,
           results[0].wrong + results[1].wrong, results[0].leaf + results[1].leaf);
    return 0;
}
