// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Pin one huge page of a private mapping with io_uring, end the mapping, and show
 * HugePages_Rsvd of /proc/meminfo: it has to be 0, with the page pinned and after.
 * gcc -static -o pinned pinned.c
 */
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>
#include <linux/io_uring.h>

#define SIZE (2UL << 20)

static void show(const char *when)
{
	char line[128];
	FILE *f = fopen("/proc/meminfo", "r");

	while (f && fgets(line, sizeof(line), f))
		if (!strncmp(line, "HugePages_", 10))
			printf("%s: %s", when, line);
	if (f)
		fclose(f);
}

int main(void)
{
	struct io_uring_params params = {0};
	int ring = syscall(SYS_io_uring_setup, 4, &params);
	char *page = mmap(NULL, SIZE, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
	struct iovec buffer = {page, SIZE};

	if (ring < 0 || page == MAP_FAILED)
		return perror("io_uring_setup or mmap"), 1;
	memset(page, 1, SIZE);
	show("mapped");
	if (syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, &buffer, 1))
		return perror("io_uring_register"), 1;
	munmap(page, SIZE);
	show("unmapped, pinned");
	close(ring);
	sleep(2);
	show("unpinned");
	return 0;
}
