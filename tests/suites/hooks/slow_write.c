/* slow_write FILE SECONDS: a write to FILE that is under way for so long, and keeps a freeze of its file system waiting. The bytes come from a
 * page that userfaultfd(2) fills when the time is over. Says "writing" once it is. */
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096

static char *page;

static void *write_it(void *path) {
    int file = open(path, O_WRONLY | O_CREAT, 0600);
    return (void *)(long)(write(file, page, PAGE) != PAGE);
}

int main(int count, char **arguments) {
    if (count != 3) return 2;
    int faults = syscall(SYS_userfaultfd, O_CLOEXEC);
    struct uffdio_api api = {.api = UFFD_API};
    if (faults < 0 || ioctl(faults, UFFDIO_API, &api)) return 1;
    page = mmap(0, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct uffdio_register missing = {.range = {(unsigned long)page, PAGE}, .mode = UFFDIO_REGISTER_MODE_MISSING};
    if (page == MAP_FAILED || ioctl(faults, UFFDIO_REGISTER, &missing)) return 1;
    pthread_t writer;
    if (pthread_create(&writer, 0, write_it, arguments[1])) return 1;
    /* The fault says that the write has begun. */
    struct uffd_msg fault;
    if (read(faults, &fault, sizeof fault) != sizeof fault) return 1;
    puts("writing");
    fflush(stdout);
    sleep(atoi(arguments[2]));
    static char zeroes[PAGE];
    struct uffdio_copy copy = {.dst = (unsigned long)page, .src = (unsigned long)zeroes, .len = PAGE};
    void *failed;
    return ioctl(faults, UFFDIO_COPY, &copy) || pthread_join(writer, &failed) || failed;
}
