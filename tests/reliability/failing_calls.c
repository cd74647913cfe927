/* Calls of the C library that fail when they are told to, and are counted: a library to preload.

   Python, HDF5, Pillow and torch reach the disk through these names, so the command itself runs
   unchanged. Set by the environment:

     FAIL_CALLS    which: names such as open,pread,flock with commas between; all if absent. A name
                   stands for its variants too: open for openat and open64, fsync for fdatasync,
                   rename for renameat, stat for lstat and fstatat; fcntl for its locks only
     FAIL_PREFIX   only paths that begin with this
     FAIL_PART     only paths that contain this
     FAIL_FOLDERS  1: only what is open as a folder (for fsync)
     FAIL_ERRNO    the number that errno gets, or one for each name: open=24,write=28
     FAIL_AT       the number of the matching call that fails, from 1; or all; or none, to count
     FAIL_COUNT    a file whose first 8 bytes count the matching calls of all processes
     FAIL_LOG      a file that gets a line per matching call: number, name, path, "here" or ""

   A forked process whose parent has not used them yet may call failing_calls_again() to have them
   read from its own environment. Paths are absolute, and that of a descriptor is where it leads, as the kernel says. */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

enum { ABSENT = -1, ALL = -2 };

static struct {
    int ready;
    const char *calls, *prefix, *part, *number;
    int folders, log;
    long at;
    long *count, own;
} plan;

static void prepare(void) {
    if (plan.ready) return;
    plan.ready = 1;
    plan.log = ABSENT;
    plan.calls = getenv("FAIL_CALLS");
    plan.prefix = getenv("FAIL_PREFIX");
    plan.part = getenv("FAIL_PART");
    plan.folders = getenv("FAIL_FOLDERS") != NULL;
    plan.number = getenv("FAIL_ERRNO");
    const char *at = getenv("FAIL_AT");
    plan.at = !at || !strcmp(at, "none") ? ABSENT : !strcmp(at, "all") ? ALL : atol(at);
    plan.count = &plan.own;
    const char *count = getenv("FAIL_COUNT"), *log = getenv("FAIL_LOG");
    if (count) {
        int file = (int)syscall(SYS_openat, AT_FDCWD, count, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        if (file >= 0 && !syscall(SYS_ftruncate, file, (long)sizeof(long))) {
            void *shared =
                mmap(NULL, sizeof(long), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
            if (shared != MAP_FAILED) plan.count = shared;
        }
        if (file >= 0) syscall(SYS_close, file);
    }
    if (log)
        plan.log = (int)syscall(
            SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

void failing_calls_again(void) {
    plan.ready = 0;
    prepare();
}

static int number_of(const char *call) {
    if (!plan.number) return EIO;
    size_t length = strlen(call);
    for (const char *at = plan.number; (at = strstr(at, call)); at += length) {
        int begins = at == plan.number || at[-1] == ',';
        if (begins && at[length] == '=') return atoi(at + length + 1);
    }
    return strchr(plan.number, '=') ? EIO : atoi(plan.number);
}

static int is_among(const char *name) {
    if (!plan.calls) return 1;
    size_t length = strlen(name);
    for (const char *at = plan.calls; (at = strstr(at, name)); at += length) {
        int begins = at == plan.calls || at[-1] == ',';
        if (begins && (at[length] == ',' || !at[length])) return 1;
    }
    return 0;
}

static int behind(int descriptor, char *path) {
    char name[64];
    snprintf(name, sizeof name, "/proc/self/fd/%d", descriptor);
    long length = syscall(SYS_readlinkat, AT_FDCWD, name, path, PATH_MAX - 1);
    path[length > 0 ? length : 0] = 0;
    return length > 0;
}

/* Count a call on a path, and return whether it is one to fail; errno is then set. */
static int fails_at(const char *call, const char *path) {
    if (plan.prefix && strncmp(path, plan.prefix, strlen(plan.prefix))) return 0;
    if (plan.part && !strstr(path, plan.part)) return 0;
    long number = __atomic_add_fetch(plan.count, 1, __ATOMIC_SEQ_CST);
    int here = plan.at == ALL || plan.at == number;
    if (plan.log != ABSENT) {
        char line[PATH_MAX + 100];
        int length =
            snprintf(line, sizeof line, "%ld\t%s\t%s\t%s\n", number, call, path, here ? "here" : "");
        syscall(SYS_write, plan.log, line, (size_t)length);
    }
    if (here) errno = number_of(call);
    return here;
}

static int fails_by_name(const char *call, int folder, const char *name) {
    int before = errno;
    prepare();
    if (!is_among(call) || plan.folders || !name) return 0;
    char path[2 * PATH_MAX] = "";
    if (name[0] != '/') {
        if (folder == AT_FDCWD) {
            if (syscall(SYS_getcwd, path, PATH_MAX) < 0) return 0;
        } else if (!behind(folder, path)) {
            return 0;
        }
        strcat(path, "/");
    }
    strncat(path, name, PATH_MAX - 1);
    if (fails_at(call, path)) return 1;
    errno = before;
    return 0;
}

static int fails_by_number(const char *call, int descriptor) {
    int before = errno;
    prepare();
    if (!is_among(call)) return 0;
    char path[PATH_MAX];
    struct stat state;
    int known = behind(descriptor, path);
    if (known && plan.folders)
        known = !fstat(descriptor, &state) && S_ISDIR(state.st_mode);
    if (known && fails_at(call, path)) return 1;
    errno = before;
    return 0;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define OPEN(name)                                                                        \
    int name(const char *path, int flags, ...) {                                          \
        va_list rest;                                                                     \
        va_start(rest, flags);                                                            \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0;         \
        va_end(rest);                                                                     \
        return fails_by_name("open", AT_FDCWD, path) ? -1 : REAL(name)(path, flags, mode); \
    }
#define OPENAT(name)                                                                           \
    int name(int folder, const char *path, int flags, ...) {                                   \
        va_list rest;                                                                          \
        va_start(rest, flags);                                                                 \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0;              \
        va_end(rest);                                                                          \
        return fails_by_name("open", folder, path) ? -1 : REAL(name)(folder, path, flags, mode); \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

ssize_t read(int file, void *to, size_t size) {
    return fails_by_number("read", file) ? -1 : REAL(read)(file, to, size);
}
ssize_t write(int file, const void *from, size_t size) {
    return fails_by_number("write", file) ? -1 : REAL(write)(file, from, size);
}
#define PREAD(name, offset_type)                                                 \
    ssize_t name(int file, void *to, size_t size, offset_type at) {              \
        return fails_by_number("pread", file) ? -1 : REAL(name)(file, to, size, at); \
    }
#define PWRITE(name, offset_type)                                                     \
    ssize_t name(int file, const void *from, size_t size, offset_type at) {           \
        return fails_by_number("pwrite", file) ? -1 : REAL(name)(file, from, size, at); \
    }
PREAD(pread, off_t)
PREAD(pread64, off64_t)
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

int fsync(int file) { return fails_by_number("fsync", file) ? -1 : REAL(fsync)(file); }
int fdatasync(int file) { return fails_by_number("fsync", file) ? -1 : REAL(fdatasync)(file); }

int rename(const char *from, const char *to) {
    return fails_by_name("rename", AT_FDCWD, to) ? -1 : REAL(rename)(from, to);
}
int renameat(int folder, const char *from, int other, const char *to) {
    return fails_by_name("rename", other, to) ? -1 : REAL(renameat)(folder, from, other, to);
}
int renameat2(int folder, const char *from, int other, const char *to, unsigned int flags) {
    return fails_by_name("rename", other, to) ? -1
                                              : REAL(renameat2)(folder, from, other, to, flags);
}
int unlink(const char *path) {
    return fails_by_name("unlink", AT_FDCWD, path) ? -1 : REAL(unlink)(path);
}
int unlinkat(int folder, const char *path, int flags) {
    return fails_by_name("unlink", folder, path) ? -1 : REAL(unlinkat)(folder, path, flags);
}
int mkdir(const char *path, mode_t mode) {
    return fails_by_name("mkdir", AT_FDCWD, path) ? -1 : REAL(mkdir)(path, mode);
}

#define STAT(name, kind)                                                             \
    int name(const char *path, struct kind *found) {                                 \
        return fails_by_name("stat", AT_FDCWD, path) ? -1 : REAL(name)(path, found); \
    }
#define FSTATAT(name, kind)                                                              \
    int name(int folder, const char *path, struct kind *found, int flags) {              \
        return path[0] && fails_by_name("stat", folder, path)                            \
                   ? -1                                                                  \
                   : REAL(name)(folder, path, found, flags);                             \
    }
STAT(stat, stat)
STAT(stat64, stat64)
STAT(lstat, stat)
STAT(lstat64, stat64)
FSTATAT(fstatat, stat)
FSTATAT(fstatat64, stat64)

#define READDIR(name, kind)                                                            \
    struct kind *name(DIR *folder) {                                                   \
        return fails_by_number("readdir", dirfd(folder)) ? NULL : REAL(name)(folder); \
    }
READDIR(readdir, dirent)
READDIR(readdir64, dirent64)

int flock(int file, int kind) {
    return fails_by_number("flock", file) ? -1 : REAL(flock)(file, kind);
}

static int locks(int command) {
    return command == F_SETLK || command == F_SETLKW || command == F_GETLK ||
           command == F_OFD_SETLK || command == F_OFD_SETLKW || command == F_OFD_GETLK;
}
#define FCNTL(name)                                                            \
    int name(int file, int command, ...) {                                     \
        va_list rest;                                                          \
        va_start(rest, command);                                               \
        void *argument = va_arg(rest, void *);                                 \
        va_end(rest);                                                          \
        if (locks(command) && fails_by_number("fcntl", file)) return -1;       \
        return REAL(name)(file, command, argument);                            \
    }
FCNTL(fcntl)
FCNTL(fcntl64)
