// SPDX-License-Identifier: MIT
/*
 * Probe: check the semaphore, convert, call.  Stub: a dlopen'd stub file.
 *
 * Owns the fire path and nothing else: names, files, strictness and messages to the user are
 * decided in Python (provider.py, stubfile.py).
 *
 * Everything here runs with the GIL held, the call into the stub included.  That is what makes
 * unload safe while other threads fire: between reading `function` and returning from it no other
 * thread of this interpreter runs, and another interpreter holds a dlopen reference of its own.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include <dlfcn.h>
#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MAX_WORDS 12  /* operands of a probe; stubgen/spec.py MAX_OPERANDS */
#define REGISTER_WORDS 6

#if defined(__GNUC__)
#define LIKELY(x) __builtin_expect(!!(x), 1)
#else
#define LIKELY(x) (x)
#endif

/* Gates that are not a semaphore: always look closer, never look closer. */
static const volatile uint16_t ALWAYS = 1;
static const volatile uint16_t NEVER = 0;

/* A probe function of a stub: it takes what it is given and touches none of it. */
typedef union {
    void *address;
    void (*six)(uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t);
    void (*twelve)(uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                   uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t);
} Function;

typedef struct {
    PyTypeObject *stub_type;
    PyTypeObject *probe_type;
} State;

/* ------------------------------------------------------------------------------ Stub */

typedef struct {
    PyObject_HEAD
    void *handle;
    int fd;  /* of a memfd, kept open so that /proc/PID/fd/N names the stub; or -1 */
    struct stat file;  /* what fd was opened on: programs close descriptors they do not know */
} Stub;

static int
stub_owns_fd(const Stub *self)
{
    struct stat now;
    return self->fd >= 0 && fstat(self->fd, &now) == 0 && now.st_dev == self->file.st_dev &&
           now.st_ino == self->file.st_ino;
}

static PyObject *
stub_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"path", "fd", NULL};
    PyObject *path;
    int fd = -1;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&|i:Stub", keywords, PyUnicode_FSConverter,
                                     &path, &fd))
        return NULL;
    Stub *self = (Stub *)type->tp_alloc(type, 0);
    if (self != NULL) {
        self->fd = fd;
        if (fd >= 0 && fstat(fd, &self->file) < 0)
            self->fd = -1;
        self->handle = dlopen(PyBytes_AS_STRING(path), RTLD_NOW | RTLD_LOCAL);
        if (self->handle == NULL) {
            const char *why = dlerror();
            PyErr_SetString(PyExc_OSError, why ? why : "dlopen failed");
            Py_CLEAR(self);
        }
    }
    Py_DECREF(path);
    return (PyObject *)self;
}

static void
stub_dealloc(Stub *self)
{
    PyTypeObject *type = Py_TYPE(self);
    if (self->handle != NULL)
        dlclose(self->handle);
    if (stub_owns_fd(self))
        close(self->fd);
    type->tp_free(self);
    Py_DECREF(type);
}

PyDoc_STRVAR(stub_doc,
"Stub(path, fd=-1)\n--\n\n"
"A stub file mapped into this process, for as long as the object lives (dlopen(3), dlclose(3)).\n"
"Owns `fd`. Raises OSError with the loader's message.");

static PyType_Slot stub_slots[] = {
    {Py_tp_doc, (void *)stub_doc},
    {Py_tp_new, stub_new},
    {Py_tp_dealloc, stub_dealloc},
    {0, NULL},
};

static PyType_Spec stub_spec = {
    .name = "usdt._probe.Stub",
    .basicsize = sizeof(Stub),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = stub_slots,
};

/* ------------------------------------------------------------------------------ Probe */

typedef struct {
    PyObject_HEAD
    vectorcallfunc vectorcall;
    const volatile uint16_t *gate;       /* zero: this call is over */
    const volatile uint16_t *semaphore;  /* of the stub; NEVER while not loaded */
    Function function;                   /* of the stub; NULL while not loaded */
    Py_ssize_t nargs;
    char codes[MAX_WORDS + 1];           /* one conversion an argument: stubgen/argtypes.py */
    char strict;
    char forgotten;                      /* fired while not loaded deserves a warning */
    PyObject *provider;                  /* owner of the description; told of `forgotten` fires */
    PyObject *stub;                      /* owner of semaphore and function, NULL while not loaded */
    PyObject *listener;                  /* called with (probe, values), or NULL */
    PyObject *spec;                      /* stubgen.Probe */
    PyObject *label;                     /* "provider:probe" */
    PyObject *names;                     /* tuple of str, one an argument */
    PyObject *defaults;                  /* tuple, for the last arguments */
    unsigned long long dropped;
    PyObject *dict;
    PyObject *weakrefs;
} Probe;

/* What a conversion borrowed, given back after the stub has been called. */
typedef struct {
    Py_ssize_t objects, buffers;
    PyObject *object[MAX_WORDS];
    Py_buffer buffer[MAX_WORDS / 2];
} Scratch;

static void
scratch_release(Scratch *scratch)
{
    while (scratch->objects > 0)
        Py_DECREF(scratch->object[--scratch->objects]);
    while (scratch->buffers > 0)
        PyBuffer_Release(&scratch->buffer[--scratch->buffers]);
}

/* A tracer's read cannot fault a page in: touch what it may look at. */
static void
touch(const char *data, Py_ssize_t size)
{
    const Py_ssize_t page = 4096, most = 64 * 1024;
    if (size > most)
        size = most;
    for (Py_ssize_t at = 0; at < size; at += page)
        (void)*(const volatile char *)(data + at);
    if (size > 0)  /* the steps may end short of the last page */
        (void)*(const volatile char *)(data + size - 1);
}

static int
wrong_type(Probe *self, Py_ssize_t i, const char *wants, PyObject *value)
{
    PyErr_Format(PyExc_TypeError, "%U: argument %R wants %s, got %.100s", self->label,
                 PyTuple_GET_ITEM(self->names, i), wants, Py_TYPE(value)->tp_name);
    return -1;
}

static int
out_of_range(Probe *self, Py_ssize_t i, const char *wants)
{
    PyErr_Format(PyExc_OverflowError, "%U: argument %R is out of the range of %s", self->label,
                 PyTuple_GET_ITEM(self->names, i), wants);
    return -1;
}

static int
convert_int(Probe *self, Py_ssize_t i, PyObject *value, uint64_t *word)
{
    static const struct { char code, bits, is_signed; const char *name; } rows[] = {
        {'Q', 64, 0, "u64"}, {'q', 64, 1, "i64"}, {'i', 32, 1, "i32"}, {'I', 32, 0, "u32"},
        {'H', 16, 0, "u16"}, {'h', 16, 1, "i16"}, {'B', 8, 0, "u8"},   {'b', 8, 1, "i8"},
        {'P', 64, 0, "ptr"}, {'?', 1, 0, "bool"},
    };
    const char code = self->codes[i];
    size_t row = 0;
    while (rows[row].code != code)
        row++;

    PyObject *number;
    if (LIKELY(PyLong_Check(value)))
        number = Py_NewRef(value);
    else if ((number = PyNumber_Index(value)) == NULL) {
        if (!PyErr_ExceptionMatches(PyExc_TypeError))
            return -1;
        PyErr_Clear();
        return wrong_type(self, i, rows[row].name, value);
    }
    int overflow;
    long long v = PyLong_AsLongLongAndOverflow(number, &overflow);
    int ok;
    if (overflow > 0 && rows[row].bits == 64 && !rows[row].is_signed) {
        *word = PyLong_AsUnsignedLongLong(number);
        ok = !(*word == (uint64_t)-1 && PyErr_Occurred());
        PyErr_Clear();
    }
    else {
        const int bits = rows[row].bits - rows[row].is_signed;
        const long long most = bits >= 63 ? LLONG_MAX : (1LL << bits) - 1;
        const long long least = rows[row].is_signed ? -most - 1 : 0;
        ok = overflow == 0 && v >= least && v <= most;
        *word = (uint64_t)v;
    }
    Py_DECREF(number);
    return ok ? 0 : out_of_range(self, i, rows[row].name);
}

static int
convert_float(Probe *self, Py_ssize_t i, PyObject *value, uint64_t *word)
{
    double wide = PyFloat_AsDouble(value);
    if (wide == -1.0 && PyErr_Occurred()) {
        if (PyErr_ExceptionMatches(PyExc_OverflowError)) {
            PyErr_Clear();
            return out_of_range(self, i, "f64");
        }
        if (!PyErr_ExceptionMatches(PyExc_TypeError))
            return -1;
        PyErr_Clear();
        return wrong_type(self, i, "a number", value);
    }
    if (self->codes[i] == 'd') {
        memcpy(word, &wide, sizeof wide);
        return 0;
    }
    float narrow = (float)wide;
    if (isinf(narrow) && !isinf(wide))
        return out_of_range(self, i, "f32");
    uint32_t bits;
    memcpy(&bits, &narrow, sizeof bits);
    *word = bits;
    return 0;
}

static int
convert_str(Probe *self, Py_ssize_t i, PyObject *value, uint64_t *word, Scratch *scratch)
{
    if (!PyUnicode_Check(value))
        return wrong_type(self, i, "str", value);
    Py_ssize_t size;
    const char *text = PyUnicode_AsUTF8AndSize(value, &size);
    if (text == NULL) {
        /* Undecodable bytes in file names and the like travel as they came. */
        if (!PyErr_ExceptionMatches(PyExc_UnicodeEncodeError))
            return -1;
        PyErr_Clear();
        PyObject *bytes = PyUnicode_AsEncodedString(value, "utf-8", "surrogateescape");
        if (bytes == NULL)
            return -1;
        scratch->object[scratch->objects++] = bytes;
        text = PyBytes_AS_STRING(bytes);
        size = PyBytes_GET_SIZE(bytes);
    }
    if (memchr(text, '\0', (size_t)size) != NULL) {
        PyErr_Format(PyExc_ValueError,
                     "%U: argument %R has a NUL character, where a tracer would cut it: declare "
                     "it bytes", self->label, PyTuple_GET_ITEM(self->names, i));
        return -1;
    }
    *word = (uint64_t)(uintptr_t)text;
    return 0;
}

static int
convert_bytes(Probe *self, Py_ssize_t i, PyObject *value, uint64_t *words, Scratch *scratch)
{
    const char *data;
    Py_ssize_t size;
    if (PyBytes_Check(value)) {
        data = PyBytes_AS_STRING(value);
        size = PyBytes_GET_SIZE(value);
    }
    else {
        Py_buffer *buffer = &scratch->buffer[scratch->buffers];
        if (PyObject_GetBuffer(value, buffer, PyBUF_SIMPLE) < 0) {
            if (!PyErr_ExceptionMatches(PyExc_TypeError))
                return -1;
            PyErr_Clear();
            return wrong_type(self, i, "bytes", value);
        }
        scratch->buffers++;
        data = buffer->buf;
        size = buffer->len;
    }
    touch(data, size);
    words[0] = (uint64_t)(uintptr_t)data;
    words[1] = (uint64_t)size;
    return 0;
}

/* A 64-bit operand of a provider that does not say what is in it (stapsdt.py). */
static int
convert_word(Probe *self, Py_ssize_t i, PyObject *value, uint64_t *word, Scratch *scratch)
{
    if (PyUnicode_Check(value))
        return convert_str(self, i, value, word, scratch);
    if (PyBytes_Check(value)) {
        touch(PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value));
        *word = (uint64_t)(uintptr_t)PyBytes_AS_STRING(value);
        return 0;
    }
    int overflow;
    long long v = PyLong_Check(value) ? PyLong_AsLongLongAndOverflow(value, &overflow) : 0;
    if (!PyLong_Check(value))
        return wrong_type(self, i, "int or str", value);
    *word = (uint64_t)v;
    if (overflow > 0) {
        *word = PyLong_AsUnsignedLongLong(value);
        if (*word == (uint64_t)-1 && PyErr_Occurred()) {
            PyErr_Clear();
            return out_of_range(self, i, "64 bits");
        }
    }
    return overflow < 0 ? out_of_range(self, i, "64 bits") : 0;
}

/* Fill words from nargs values.  0, or -1 with an exception; release scratch either way. */
static int
convert(Probe *self, PyObject *const *args, uint64_t words[MAX_WORDS], Scratch *scratch)
{
    Py_ssize_t word = 0;
    for (Py_ssize_t i = 0; i < self->nargs; i++) {
        int rc;
        switch (self->codes[i]) {
        case 's':
            rc = convert_str(self, i, args[i], &words[word++], scratch);
            break;
        case 'y':
            rc = convert_bytes(self, i, args[i], &words[word], scratch);
            word += 2;
            break;
        case 'f':
        case 'd':
            rc = convert_float(self, i, args[i], &words[word++]);
            break;
        case 'w':
            rc = convert_word(self, i, args[i], &words[word++], scratch);
            break;
        default:
            rc = convert_int(self, i, args[i], &words[word++]);
        }
        if (rc < 0)
            return -1;
    }
    return (int)word;
}

/* An event that cannot be told: raise for a strict probe, else count, report and go on.  The
   first 16 are reported, then the 32nd, 64th, ...: a tracer must not flood a program's log. */
static PyObject *
drop(Probe *self)
{
    if (self->strict || !PyErr_ExceptionMatches(PyExc_Exception))
        return NULL;
    self->dropped++;
    if (self->dropped <= 16 || (self->dropped & (self->dropped - 1)) == 0)
        PyErr_WriteUnraisable((PyObject *)self);
    else
        PyErr_Clear();
    Py_RETURN_NONE;
}

static int
listening(Probe *self)
{
    return *self->gate != 0 && (*self->semaphore != 0 || self->listener != NULL);
}

static void
set_gate(Probe *self)
{
    if (self->strict || self->forgotten || self->listener != NULL)
        self->gate = &ALWAYS;
    else
        self->gate = self->semaphore;
}

/* The provider warns once of a probe that is fired and was never loaded.  A log handler that
   fails does not fail the call. */
static int
tell_forgotten(Probe *self)
{
    if (!self->forgotten || self->listener != NULL)
        return 0;
    self->forgotten = 0;  /* before any Python code runs, or other threads warn as well */
    set_gate(self);
    PyObject *told = PyObject_CallMethod(self->provider, "_fired_unloaded", NULL);
    if (told == NULL) {
        if (!PyErr_ExceptionMatches(PyExc_Exception))
            return -1;
        PyErr_WriteUnraisable((PyObject *)self);
        return 0;
    }
    Py_DECREF(told);
    return 0;
}

/* Behind the gate: args are nargs borrowed references. */
static PyObject *
fire(Probe *self, PyObject *const *args)
{
    if (tell_forgotten(self) < 0)
        return NULL;
    if (!self->strict && !listening(self))
        Py_RETURN_NONE;

    uint64_t w[MAX_WORDS] = {0};
    Scratch scratch;
    scratch.objects = scratch.buffers = 0;
    PyObject *result = NULL;
    int count = convert(self, args, w, &scratch);
    if (count < 0) {
        result = drop(self);
        goto done;
    }
    if (self->listener != NULL) {
        PyObject *listener = Py_NewRef(self->listener);
        PyObject *values = PyTuple_New(self->nargs);
        for (Py_ssize_t i = 0; values != NULL && i < self->nargs; i++)
            PyTuple_SET_ITEM(values, i, Py_NewRef(args[i]));
        PyObject *heard =
            values ? PyObject_CallFunctionObjArgs(listener, self, values, NULL) : NULL;
        Py_XDECREF(values);
        Py_DECREF(listener);
        if (heard == NULL)
            goto done;
        Py_DECREF(heard);
    }
    /* Conversions and listeners run Python code, which may have unloaded the stub. */
    if (*self->semaphore != 0) {
        if (count <= REGISTER_WORDS)
            self->function.six(w[0], w[1], w[2], w[3], w[4], w[5]);
        else
            self->function.twelve(w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8], w[9],
                                  w[10], w[11]);
    }
    result = Py_NewRef(Py_None);
done:
    scratch_release(&scratch);
    return result;
}

static PyObject *
wrong_count(Probe *self, Py_ssize_t given)
{
    return PyErr_Format(PyExc_TypeError, "%U() takes %zd arguments but %zd were given",
                        self->label, self->nargs, given);
}

/* Calls with keywords, with defaults, or with a wrong count. */
static PyObject *
fire_bound(Probe *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    PyObject *bound[MAX_WORDS] = {NULL};
    const Py_ssize_t nkw = kwnames ? PyTuple_GET_SIZE(kwnames) : 0;
    if (nargs > self->nargs)
        return wrong_count(self, nargs + nkw);
    for (Py_ssize_t i = 0; i < nargs; i++)
        bound[i] = args[i];
    for (Py_ssize_t k = 0; k < nkw; k++) {
        PyObject *name = PyTuple_GET_ITEM(kwnames, k);
        Py_ssize_t i = 0;
        for (; i < self->nargs; i++) {
            int same = PyObject_RichCompareBool(PyTuple_GET_ITEM(self->names, i), name, Py_EQ);
            if (same < 0)
                return NULL;
            if (same)
                break;
        }
        if (i == self->nargs)
            return PyErr_Format(PyExc_TypeError, "%U() got an unexpected keyword argument %R",
                                self->label, name);
        if (bound[i] != NULL)
            return PyErr_Format(PyExc_TypeError, "%U() got multiple values for argument %R",
                                self->label, name);
        bound[i] = args[nargs + k];
    }
    const Py_ssize_t required = self->nargs - PyTuple_GET_SIZE(self->defaults);
    for (Py_ssize_t i = 0; i < self->nargs; i++) {
        if (bound[i] == NULL && i >= required)
            bound[i] = PyTuple_GET_ITEM(self->defaults, i - required);
        if (bound[i] == NULL)
            return PyErr_Format(PyExc_TypeError, "%U() missing required argument %R", self->label,
                                PyTuple_GET_ITEM(self->names, i));
    }
    if (*self->gate == 0)
        Py_RETURN_NONE;
    return fire(self, bound);
}

static PyObject *
probe_vectorcall(PyObject *op, PyObject *const *args, size_t nargsf, PyObject *kwnames)
{
    Probe *self = (Probe *)op;
    const Py_ssize_t nargs = PyVectorcall_NARGS(nargsf);
    if (LIKELY(nargs == self->nargs && kwnames == NULL)) {
        if (LIKELY(*self->gate == 0))
            Py_RETURN_NONE;
        return fire(self, args);
    }
    return fire_bound(self, args, nargs, kwnames);
}

static int
probe_bool(PyObject *op)
{
    Probe *self = (Probe *)op;
    return LIKELY(*self->gate == 0) ? 0 : listening(self);
}

/* --- methods and attributes */

PyDoc_STRVAR(fire_doc,
"fire($self, /, *args, **kwargs)\n--\n\n"
"The same as calling the probe: one event with these argument values, if somebody listens.\n"
"Raises TypeError for a wrong number or name of arguments, always.");

static PyObject *
probe_fire(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    return probe_vectorcall(self, args, (size_t)nargs, kwnames);
}

PyDoc_STRVAR(lazy_doc,
"lazy($self, values, /)\n--\n\n"
"Call `values` and fire with the tuple it returns; only if somebody listens, or when strict.");

static PyObject *
probe_lazy(Probe *self, PyObject *values)
{
    if (*self->gate == 0)
        Py_RETURN_NONE;
    if (tell_forgotten(self) < 0)
        return NULL;
    if (!self->strict && !listening(self))
        Py_RETURN_NONE;
    PyObject *made = PyObject_CallNoArgs(values);
    if (made == NULL)
        return drop(self);
    PyObject *result;
    if (PyTuple_Check(made) && PyTuple_GET_SIZE(made) == self->nargs)
        result = fire(self, ((PyTupleObject *)made)->ob_item);
    else {
        PyErr_Format(PyExc_TypeError,
                     "%U: the function given to lazy() must return a tuple of %zd values",
                     self->label, self->nargs);
        result = drop(self);
    }
    Py_DECREF(made);
    return result;
}

PyDoc_STRVAR(attach_doc,
"_attach($self, stub, function, semaphore, /)\n--\n\n"
"Fire into `stub` from now on; the names are its symbols. Raises LookupError.");

static PyObject *
probe_attach(Probe *self, PyObject *args)
{
    State *state = PyType_GetModuleState(Py_TYPE(self));
    Stub *stub;
    const char *function, *semaphore;
    if (!PyArg_ParseTuple(args, "O!ss:_attach", state->stub_type, &stub, &function, &semaphore))
        return NULL;
    void *code = dlsym(stub->handle, function);
    void *data = dlsym(stub->handle, semaphore);
    if (code == NULL || data == NULL)
        return PyErr_Format(PyExc_LookupError, "the stub lacks %s", code ? semaphore : function);
    self->function.address = code;
    self->semaphore = data;
    self->forgotten = 0;
    set_gate(self);
    Py_XSETREF(self->stub, Py_NewRef(stub));
    Py_RETURN_NONE;
}

PyDoc_STRVAR(detach_doc,
"_detach($self, /)\n--\n\n"
"Do nothing when fired from now on, and let go of the stub.");

static PyObject *
probe_detach(Probe *self, PyObject *Py_UNUSED(ignored))
{
    self->semaphore = &NEVER;
    self->function.address = NULL;
    set_gate(self);
    Py_CLEAR(self->stub);
    Py_RETURN_NONE;
}

static PyObject *
get_loaded(Probe *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(self->stub != NULL);
}

static PyObject *
get_enabled(Probe *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(listening(self));
}

static PyObject *
get_flag(Probe *self, void *closure)
{
    return PyBool_FromLong(*((char *)self + (size_t)closure));
}

static int
set_flag(Probe *self, PyObject *value, void *closure)
{
    int truth = value == NULL ? 0 : PyObject_IsTrue(value);
    if (truth < 0)
        return -1;
    *((char *)self + (size_t)closure) = (char)truth;
    set_gate(self);
    return 0;
}

static PyObject *
get_listener(Probe *self, void *Py_UNUSED(closure))
{
    return Py_NewRef(self->listener ? self->listener : Py_None);
}

static int
set_listener(Probe *self, PyObject *value, void *Py_UNUSED(closure))
{
    PyObject *old = self->listener;
    self->listener = value == NULL || value == Py_None ? NULL : Py_NewRef(value);
    set_gate(self);
    Py_XDECREF(old);
    return 0;
}

static PyObject *
probe_repr(Probe *self)
{
    return PyUnicode_FromFormat("<usdt.Probe %U%s>", self->label,
                                self->stub ? "" : ", not loaded");
}

static PyObject *
probe_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"provider", "spec", "label", "names", "codes", "defaults", NULL};
    PyObject *provider, *spec, *label, *names, *defaults;
    const char *codes;
    Py_ssize_t count;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOUO!s#O!:Probe", keywords, &provider, &spec,
                                     &label, &PyTuple_Type, &names, &codes, &count, &PyTuple_Type,
                                     &defaults))
        return NULL;
    Py_ssize_t words = count;
    for (Py_ssize_t i = 0; i < count; i++)
        words += codes[i] == 'y';
    if (words > MAX_WORDS || count != PyTuple_GET_SIZE(names) ||
        PyTuple_GET_SIZE(defaults) > count || strspn(codes, "bBhHiIqQfd?syPw") != (size_t)count) {
        PyErr_SetString(PyExc_ValueError, "names, codes and defaults do not describe a probe");
        return NULL;
    }
    Probe *self = (Probe *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->vectorcall = probe_vectorcall;
    self->semaphore = &NEVER;
    self->nargs = count;
    memcpy(self->codes, codes, (size_t)count);
    self->provider = Py_NewRef(provider);
    self->spec = Py_NewRef(spec);
    self->label = Py_NewRef(label);
    self->names = Py_NewRef(names);
    self->defaults = Py_NewRef(defaults);
    set_gate(self);
    return (PyObject *)self;
}

static int
probe_traverse(Probe *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->provider);
    Py_VISIT(self->stub);
    Py_VISIT(self->listener);
    Py_VISIT(self->spec);
    Py_VISIT(self->names);
    Py_VISIT(self->defaults);
    Py_VISIT(self->dict);
    return 0;
}

/* After this the probe may still be called (a finalizer of the same garbage): it does nothing. */
static int
probe_clear(Probe *self)
{
    self->semaphore = self->gate = &NEVER;
    self->function.address = NULL;
    self->strict = self->forgotten = 0;
    Py_CLEAR(self->stub);
    Py_CLEAR(self->listener);
    Py_CLEAR(self->provider);
    Py_CLEAR(self->dict);
    return 0;
}

static void
probe_dealloc(Probe *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (self->weakrefs != NULL)
        PyObject_ClearWeakRefs((PyObject *)self);
    probe_clear(self);
    Py_CLEAR(self->spec);
    Py_CLEAR(self->label);
    Py_CLEAR(self->names);
    Py_CLEAR(self->defaults);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef probe_methods[] = {
    {"fire", (PyCFunction)(void (*)(void))probe_fire, METH_FASTCALL | METH_KEYWORDS, fire_doc},
    {"lazy", (PyCFunction)probe_lazy, METH_O, lazy_doc},
    {"_attach", (PyCFunction)probe_attach, METH_VARARGS, attach_doc},
    {"_detach", (PyCFunction)probe_detach, METH_NOARGS, detach_doc},
    {"__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS, "Probe[...] for annotations."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef probe_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(Probe, vectorcall), READONLY, NULL},
    {"__dictoffset__", T_PYSSIZET, offsetof(Probe, dict), READONLY, NULL},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(Probe, weakrefs), READONLY, NULL},
    {"provider", T_OBJECT, offsetof(Probe, provider), READONLY, "The Provider."},
    {"spec", T_OBJECT, offsetof(Probe, spec), READONLY, "The description, a stubgen.Probe."},
    {"dropped", T_ULONGLONG, offsetof(Probe, dropped), READONLY,
     "How many events of this probe could not be converted."},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef probe_getset[] = {
    {"enabled", (getter)get_enabled, NULL, "Whether somebody listens; also bool(probe).", NULL},
    {"loaded", (getter)get_loaded, NULL, "Whether the probe is visible to tracers.", NULL},
    {"_strict", (getter)get_flag, (setter)set_flag, NULL, (void *)offsetof(Probe, strict)},
    {"_forgotten", (getter)get_flag, (setter)set_flag, NULL, (void *)offsetof(Probe, forgotten)},
    {"_listener", (getter)get_listener, (setter)set_listener, NULL, NULL},
    {"__dict__", PyObject_GenericGetDict, PyObject_GenericSetDict, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(probe_doc,
"One probe of a provider. Call it to fire; its truth value says whether somebody listens.\n\n"
"Made by Provider.probe and Provider.add_probe.");

static PyType_Slot probe_slots[] = {
    {Py_tp_doc, (void *)probe_doc},
    {Py_tp_new, probe_new},
    {Py_tp_dealloc, probe_dealloc},
    {Py_tp_traverse, probe_traverse},
    {Py_tp_clear, probe_clear},
    {Py_tp_repr, probe_repr},
    {Py_tp_call, PyVectorcall_Call},
    {Py_tp_methods, probe_methods},
    {Py_tp_members, probe_members},
    {Py_tp_getset, probe_getset},
    {Py_nb_bool, probe_bool},
    {0, NULL},
};

static PyType_Spec probe_spec = {
    .name = "usdt.Probe",
    .basicsize = sizeof(Probe),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL |
             Py_TPFLAGS_IMMUTABLETYPE,
    .slots = probe_slots,
};

/* ------------------------------------------------------------------------------ module */

PyDoc_STRVAR(uprobe_syscall_doc,
"uprobe_syscall()\n--\n\n"
"errno of uprobe(2) called from outside a trampoline: ENXIO where the kernel turns nop5 sites\n"
"into calls (arch/x86/kernel/uprobes.c, Linux 6.18), ENOSYS where it does not.");

static PyObject *
uprobe_syscall(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
#if defined(__linux__) && defined(__x86_64__)
    const long number = 336;  /* arch/x86/entry/syscalls/syscall_64.tbl */
    return PyLong_FromLong(syscall(number) < 0 ? errno : 0);
#else
    return PyLong_FromLong(ENOSYS);
#endif
}

static PyMethodDef module_methods[] = {
    {"uprobe_syscall", uprobe_syscall, METH_NOARGS, uprobe_syscall_doc},
    {NULL, NULL, 0, NULL},
};

static int
module_exec(PyObject *module)
{
    State *state = PyModule_GetState(module);
    state->stub_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &stub_spec, NULL);
    if (state->stub_type == NULL || PyModule_AddType(module, state->stub_type) < 0)
        return -1;
    state->probe_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &probe_spec, NULL);
    if (state->probe_type == NULL || PyModule_AddType(module, state->probe_type) < 0)
        return -1;
    return 0;
}

static int
module_traverse(PyObject *module, visitproc visit, void *arg)
{
    State *state = PyModule_GetState(module);
    Py_VISIT(state->stub_type);
    Py_VISIT(state->probe_type);
    return 0;
}

static int
module_clear(PyObject *module)
{
    State *state = PyModule_GetState(module);
    Py_CLEAR(state->stub_type);
    Py_CLEAR(state->probe_type);
    return 0;
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
#if PY_VERSION_HEX >= 0x030c0000
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
    {0, NULL},
};

static struct PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT,
    .m_name = "usdt._probe",
    .m_doc = "The fire path of usdt, in C.",
    .m_size = sizeof(State),
    .m_methods = module_methods,
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
};

PyMODINIT_FUNC
PyInit__probe(void)
{
    return PyModuleDef_Init(&module_def);
}
