// The raffle of examples/raffle, in JavaScript, for engine.c beside it. What it reads of the clock and of chance is
// the entry's.

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
        if (tickets.size === 0) refuse(FAILED_PRECONDITION, "nobody has a ticket");
        const name = sorted()[Math.floor(Math.random() * tickets.size)];
        const winner = `${name} ${Date.now()}`;
        tickets.delete(name);
        winners.push(winner);
        console.log(name, "wins");
        return winner;
    },
    // What no machine should do: a Map is in the order of its making, which a restored one has not lived through.
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
