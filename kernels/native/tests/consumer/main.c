#include <stdio.h>
#include <tigerfg/kernels.h>

int main(void) {
    printf("tigerfg kernels %s: %zu kernels\n", tigerfg_kernels_version(), tigerfg_kernels_count());
    return tigerfg_kernels_count() > 0 ? 0 : 1;
}
