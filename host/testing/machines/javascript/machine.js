// The raffle of examples/raffle in JavaScript, run by engine.c. The clock and the random numbers
// come from the log entry.

let tickets = new Map();
let winners = [];

function refuse(code, message) {
    throw Object.assign(new Error(message), { code });
}
const INVALID_ARGUMENT = 0, FAILED_PRECONDITION = 4, UNIMPLEMENTED = 7;

const sorted = () => [...tickets.keys()].sort();

const commands = {
    Enter(name) {
        if (!/^\S{1,64}$/.test(name)) refuse(INVALID_ARGUMENT, "a name is one word");
        tickets.set(name, (tickets.get(name) ?? 0) + 1);
        return String(tickets.get(name));
    },
    Draw() {
        if (tickets.size === 0) refuse(FAILED_PRECONDITION, "there are no tickets");
        const name = sorted()[Math.floor(Math.random() * tickets.size)];
        const winner = `${name} ${Date.now()}`;
        tickets.delete(name);
        winners.push(winner);
        console.log(name, "wins");
        return winner;
    },
    // A state machine must not do this: a Map keeps the order of insertion, which a restore
    // does not preserve.
    Unsorted: () => [...tickets.keys()].join(" "),
    Panic() {
        tickets.clear();
        throw new Error("broken on purpose");
    },
};
const queries = { Names: () => sorted().join(" ") };

function answer(methods, method, request) {
    const handler = methods[method.replace("raffle.v1.Raffle/", "")];
    return handler ? handler(request) : refuse(UNIMPLEMENTED, `there is no method ${method}`);
}

globalThis.apply = (method, request) => answer(commands, method, request);
globalThis.query = (method, request) => answer(queries, method, request);
globalThis.save = () => JSON.stringify({ tickets: sorted().map((name) => [name, tickets.get(name)]), winners });
globalThis.load = (text) => {
    const restored = JSON.parse(text);
    tickets = new Map(restored.tickets);
    winners = restored.winners;
};
