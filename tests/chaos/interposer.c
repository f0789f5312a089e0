/* Stands between the processes of a sweep and the C library (LD_PRELOAD), for `python -m chaos`.
 *
 * Counts the calls that change files below REPRO_CHAOS_FOLDER, by what they are part of, and at a call that
 * a ticket names it kills the process, tears the write, or lets the call fail. It also keeps a journal of what
 * really happened to records and checkpoints: the audit counts commits from it, not from what the program says.
 *
 * It can also make a process believe that it is on another machine (REPRO_CHAOS_HOST), and a supervisor that it
 * may use REPRO_CHAOS_CORES cores, which is how many workers it starts.
 *
 * A process whose arguments hold `train` is a worker, one with `run` a supervisor; any other is left alone.
 * At its start it takes one ticket from REPRO_CHAOS_CONTROL/tickets/<role>, by rename, so that each serves one
 * process. A ticket is a line  ACTION CLASS WHEN NTH ARGUMENT  (see interposer.py); a journal line is
 * pid, role, event and its fields, separated by tabs. */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { NONE, COMMIT, CHECKPOINT, ATTEMPT, OTHER, CLASSES };
static const char *const class_names[CLASSES] = {"none", "commit", "checkpoint", "attempt", "other"};

#define DESCRIPTORS 1024
static struct { int class; char *path; } opened[DESCRIPTORS];

static char folder[PATH_MAX];
static const char *role; /* NULL: this process is left alone */
static int journal = -1, tracing;
static atomic_long counts[CLASSES];
static atomic_long clock_offset;

static struct {
    char action[16], class[16], when[16];
    long nth, argument;
    long window_ms; /* of `fail`: 0 is one call */
    atomic_int fired;
    struct timespec until;
} ticket;

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

__attribute__((format(printf, 2, 3)))
static void note(const char *event, const char *form, ...) {
    char line[2 * PATH_MAX], fields[PATH_MAX + 256];
    int saved = errno;
    va_list arguments;
    va_start(arguments, form);
    vsnprintf(fields, sizeof fields, form, arguments);
    va_end(arguments);
    int length = snprintf(line, sizeof line, "%d\t%s\t%s\t%s\n", (int)getpid(), role, event, fields);
    /* One append is one line, whoever else writes. */
    if (syscall(SYS_write, journal, line, (size_t)length) != length) _exit(99);
    errno = saved;
}

static const char *last_part(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static int ends_with(const char *text, const char *end) {
    size_t a = strlen(text), b = strlen(end);
    return a >= b && !strcmp(text + a - b, end);
}

static int below_folder(const char *path) {
    size_t length = strlen(folder);
    return role && length && !strncmp(path, folder, length) && (path[length] == '/' || !path[length]);
}

static int is_record(const char *path) {
    return below_folder(path) && !strstr(path, "/.work/") && ends_with(path, ".json");
}

static int is_checkpoint(const char *path) {
    return below_folder(path) && !strncmp(last_part(path), "checkpoint-", 11);
}

static int class_of(const char *path) {
    if (!below_folder(path)) return NONE;
    const char *name = last_part(path);
    if (strstr(name, "checkpoint-")) return CHECKPOINT;
    if (!strstr(path, "/.work")) return COMMIT;
    if (strstr(name, "record.json") || strstr(path, "/superseded") || strstr(path, "/quarantine")) return COMMIT;
    /* From the lock to the first step, and once more at the end. */
    if (ends_with(path, "/lock") || strstr(path, "/attempts")) return ATTEMPT;
    return OTHER;
}

static void die(void) {
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;) pause();
}

static int within(struct timespec until) {
    struct timespec now;
    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &now);
    return now.tv_sec < until.tv_sec || (now.tv_sec == until.tv_sec && now.tv_nsec < until.tv_nsec);
}

static void fire(int class, long count, const char *call, const char *path) {
    ticket.fired = 1;
    note("fault", "%s\t%ld\t%s\t%s\t%ld\t%s\t%s", ticket.action, ticket.argument, class_names[class], ticket.when,
         count, call, path);
}

/* Counts a call; what it is to fail with, or 0. A kill `before` does not return. */
static int enter(int class, const char *call, const char *path, int may_fail, int is_write) {
    if (class == NONE) return 0;
    long count = atomic_fetch_add(&counts[class], 1) + 1;
    if (tracing) note("call", "%s\t%ld\t%s\t%s", class_names[class], count, call, path);
    if (!ticket.action[0]) return 0;
    if (ticket.fired) {
        int failing = !strcmp(ticket.action, "fail") && ticket.window_ms && may_fail;
        return failing && within(ticket.until) ? (int)ticket.argument : 0;
    }
    if (strcmp(ticket.class, "any") && strcmp(ticket.class, class_names[class])) return 0;
    if (count < ticket.nth) return 0;
    if (!strcmp(ticket.action, "kill") && !strcmp(ticket.when, "before")) {
        fire(class, count, call, path);
        die();
    }
    if (!strcmp(ticket.action, "clock")) {
        fire(class, count, call, path);
        clock_offset = ticket.argument;
    }
    if (!strcmp(ticket.action, "fail") && may_fail) {
        syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &ticket.until);
        long nanoseconds = ticket.until.tv_nsec + ticket.window_ms % 1000 * 1000000;
        ticket.until.tv_sec += ticket.window_ms / 1000 + nanoseconds / 1000000000;
        ticket.until.tv_nsec = nanoseconds % 1000000000;
        fire(class, count, call, path);
        return (int)ticket.argument;
    }
    if (is_write && (!strcmp(ticket.action, "tear") || !strcmp(ticket.action, "short"))) {
        fire(class, count, call, path);
        return -1; /* `write` knows what to do */
    }
    return 0;
}

static void leave(int class, const char *call, const char *path) {
    if (class == NONE || ticket.fired || strcmp(ticket.action, "kill") || strcmp(ticket.when, "after")) return;
    if (strcmp(ticket.class, "any") && strcmp(ticket.class, class_names[class])) return;
    if (counts[class] < ticket.nth) return;
    fire(class, counts[class], call, path);
    die();
}

/* A call on names: fails as told, else runs, is journalled by `done`, and may be the process's last. */
#define CALL(class, name, path, may_fail, invocation, done) \
    do { \
        int wanted = enter(class, name, path, may_fail, 0); \
        if (wanted) { errno = wanted; return -1; } \
        int result = invocation; \
        int saved = errno; \
        if (result >= 0) { done; } \
        leave(class, name, path); \
        errno = saved; \
        return result; \
    } while (0)

static void remember(int descriptor, int class, const char *path) {
    if (descriptor < 0 || descriptor >= DESCRIPTORS) return;
    free(opened[descriptor].path);
    opened[descriptor].class = class;
    opened[descriptor].path = class == NONE ? NULL : strdup(path);
}

/* Reads do not count; opening a folder does, since that is how its fsync begins (O_DIRECTORY lists it). */
static int class_of_open(const char *path, int flags) {
    static const char *const files[] = {".json", ".pt", ".txt", ".log"};
    if ((flags & O_ACCMODE) != O_RDONLY || flags & (O_CREAT | O_TRUNC)) return class_of(path);
    if (flags & O_DIRECTORY) return NONE;
    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        if (ends_with(path, files[i])) return NONE;
    return class_of(path);
}

static void opened_it(int descriptor, int class, const char *path, int flags) {
    remember(descriptor, class, path);
    if (is_record(path) && ((flags & O_ACCMODE) != O_RDONLY || flags & O_TRUNC)) note("overwrite", "%s", path);
}

#define DEFINE_OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(name); \
        va_list arguments; \
        va_start(arguments, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, mode_t) : 0; \
        va_end(arguments); \
        int class = class_of_open(path, flags); \
        CALL(class, "open", path, flags & O_CREAT, real(path, flags, mode), opened_it(result, class, path, flags)); \
    }
DEFINE_OPEN(open)
DEFINE_OPEN(open64)

ssize_t write(int descriptor, const void *content, size_t size) {
    REAL(write);
    if (descriptor < 0 || descriptor >= DESCRIPTORS || opened[descriptor].class == NONE)
        return real(descriptor, content, size);
    int class = opened[descriptor].class;
    const char *path = opened[descriptor].path;
    int wanted = enter(class, "write", path, 1, size > 1);
    if (wanted > 0) {
        errno = wanted;
        return -1;
    }
    ssize_t result = real(descriptor, content, wanted < 0 ? size / 2 : size);
    if (wanted < 0 && !strcmp(ticket.action, "tear")) die();
    int saved = errno;
    leave(class, "write", path);
    errno = saved;
    return result;
}

static int tracked(int descriptor) {
    return descriptor >= 0 && descriptor < DESCRIPTORS ? opened[descriptor].class : NONE;
}

int fsync(int descriptor) {
    REAL(fsync);
    int class = tracked(descriptor);
    if (class == NONE) return real(descriptor);
    CALL(class, "fsync", opened[descriptor].path, 1, real(descriptor), );
}

int close(int descriptor) {
    REAL(close);
    int class = tracked(descriptor);
    if (class == NONE) return real(descriptor);
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s", opened[descriptor].path);
    remember(descriptor, NONE, NULL);
    CALL(class, "close", path, 0, real(descriptor), );
}

static void renamed(const char *source, const char *target) {
    if (is_record(source)) note("taken", "%s", source);
    if (is_record(target)) note("rename", "%s", target);
    if (is_checkpoint(target)) note("saved", "%s", target);
}

int rename(const char *source, const char *target) {
    REAL(rename);
    CALL(class_of(target), "rename", target, 1, real(source, target), renamed(source, target));
}

static void linked(const char *target) {
    if (is_record(target)) note("link", "%s", target);
}

int link(const char *source, const char *target) {
    REAL(link);
    CALL(class_of(target), "link", target, 1, real(source, target), linked(target));
}

static void unlinked(const char *path) {
    if (is_record(path)) note("unlink", "%s", path);
    if (is_checkpoint(path)) note("dropped", "%s", path);
}

int unlink(const char *path) {
    REAL(unlink);
    CALL(class_of(path), "unlink", path, 0, real(path), unlinked(path));
}

static void made(const char *path) {
    const char *parent = strstr(path, "/attempts/");
    if (below_folder(path) && parent && !strchr(parent + 10, '/')) note("attempt", "%s", path);
}

int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    CALL(class_of(path), "mkdir", path, 1, real(path, mode), made(path));
}

/* Locks that do nothing, as between two machines of a file system whose locks are each machine's own. */
int flock(int descriptor, int operation) {
    REAL(flock);
    if (strcmp(ticket.action, "nolock")) return real(descriptor, operation);
    if (!ticket.fired) fire(OTHER, 0, "flock", "");
    return 0;
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    REAL(clock_gettime);
    int result = real(clock, time);
    if (clock == CLOCK_REALTIME) time->tv_sec += clock_offset;
    return result;
}

int gethostname(char *name, size_t size) {
    REAL(gethostname);
    const char *pretended = getenv("REPRO_CHAOS_HOST");
    if (!role || !pretended) return real(name, size);
    snprintf(name, size, "%s", pretended);
    return 0;
}

int sched_getaffinity(pid_t pid, size_t size, cpu_set_t *cores) {
    REAL(sched_getaffinity);
    const char *pretended = getenv("REPRO_CHAOS_CORES");
    int result = real(pid, size, cores);
    if (result || !pretended || !role || strcmp(role, "supervisor")) return result;
    CPU_ZERO_S(size, cores);
    for (int core = 0; core < atoi(pretended); core++) CPU_SET_S(core, size, cores);
    return result;
}

static const char *find_role(void) {
    char words[16384];
    int file = (int)syscall(SYS_openat, AT_FDCWD, "/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
    long length = syscall(SYS_read, file, words, sizeof words - 1);
    syscall(SYS_close, file);
    words[length > 0 ? length : 0] = 0;
    for (char *word = words; word < words + length; word += strlen(word) + 1) {
        if (!strcmp(word, "train")) return "worker";
        if (!strcmp(word, "run")) return "supervisor";
    }
    return NULL;
}

static void take_ticket(const char *control) {
    char waiting[PATH_MAX], from[2 * PATH_MAX], to[2 * PATH_MAX];
    snprintf(waiting, sizeof waiting, "%s/tickets/%s", control, role);
    DIR *entries = opendir(waiting);
    if (!entries) return;
    struct dirent *entry;
    while ((entry = readdir(entries))) {
        if (entry->d_name[0] == '.') continue;
        snprintf(from, sizeof from, "%s/%s", waiting, entry->d_name);
        snprintf(to, sizeof to, "%s/taken/%s", control, entry->d_name);
        if (syscall(SYS_renameat, AT_FDCWD, from, AT_FDCWD, to)) continue; /* another process was quicker */
        FILE *file = fopen(to, "r");
        if (!file || fscanf(file, "%15s %15s %15s %ld %ld %ld", ticket.action, ticket.class, ticket.when, &ticket.nth,
                            &ticket.argument, &ticket.window_ms) != 6)
            _exit(98);
        fclose(file);
        note("ticket", "%s", entry->d_name);
        break;
    }
    closedir(entries);
}

__attribute__((constructor)) static void begin(void) {
    const char *where = getenv("REPRO_CHAOS_FOLDER"), *control = getenv("REPRO_CHAOS_CONTROL");
    if (!where || !control || !(role = find_role())) return;
    snprintf(folder, sizeof folder, "%s", where);
    tracing = getenv("REPRO_CHAOS_TRACE") != NULL;
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/journal", control);
    int file = (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
    /* Out of the way of the small numbers that the program counts on. */
    journal = fcntl(file, F_DUPFD_CLOEXEC, 900);
    syscall(SYS_close, file);
    if (journal < 0) _exit(97); /* unwatched it must not run: its faults and commits would be missed */
    note("start", "%s", "");
    take_ticket(control);
}
