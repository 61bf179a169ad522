/* Verification under keys whose comb tables are at hand: no doublings, u1 G + u2 Q is a sum of table points. */
#include "lanes_ifma.h"

fl_lane_verifier fl_comb8_ifma;

/* Steps for the second half of u1 and u2, or for the first. A lane's own window decides how many of them it uses. */
static void plan_halves(lane_plan *plan, const fl_half half[BLOCK_LANES][2], const fl_verify_job *const jobs[BLOCK_LANES],
                        unsigned key_positions) {
    const fl_affine *anything = fl_generator_table.points;
    size_t generator_first = plan_extend(plan, fl_comb_positions(fl_generator_table.window), anything);
    size_t key_first = plan_extend(plan, key_positions, anything);
    for (int lane = 0; lane < BLOCK_LANES; lane++) {
        plan_comb(plan, generator_first, lane, &fl_generator_table, &half[lane][0]);
        plan_comb(plan, key_first, lane, jobs[lane]->table, &half[lane][1]);
    }
}

static void block_sum(lane_sum *out, const fl_verify_job *const jobs[BLOCK_LANES]) {
    lane_plan plan = {.steps = 0};
    fl_half first[BLOCK_LANES][2], second[BLOCK_LANES][2];
    unsigned key_positions = 0;
    for (int lane = 0; lane < BLOCK_LANES; lane++) {
        unsigned positions = fl_comb_positions(jobs[lane]->table->window);
        key_positions = positions > key_positions ? positions : key_positions;
        fl_scalar_split(&first[lane][0], &second[lane][0], (const fl_scalar *)jobs[lane]->u1);
        fl_scalar_split(&first[lane][1], &second[lane][1], (const fl_scalar *)jobs[lane]->u2);
    }
    plan_halves(&plan, (const fl_half(*)[2])second, jobs, key_positions);
    size_t middle = plan.steps;
    plan_halves(&plan, (const fl_half(*)[2])first, jobs, key_positions);

    sum_clear(out);
    sum_add(out, &plan, 0, middle);
    fe16_mul_constant(&out->sum.x, &out->sum.x, BETA); /* times lambda */
    sum_add(out, &plan, middle, plan.steps);
}

void fl_comb8_ifma(uint8_t *verdicts, uint8_t *hint33s, const fl_verify_job *jobs, size_t count) {
    lanes_verify(verdicts, hint33s, jobs, count, block_sum);
}
